"""What a machine does that has joined another one's run: it asks to be let in, loads what it was sent, and computes its part of
each step, as any other rank does (`other.py`).

It has a supervisor of its own, whose orders it obeys: a pause here holds all machines at the end of their part of the step, and
micro-batches here are as small as the memory here has them. What it learns is no state of its own: parameters and moments come
from the first machine, which saves them. So it has nothing to lose, and begins anew whenever the first machine does.
"""

from __future__ import annotations

import contextlib
import queue
import socket
from typing import Any

import msgspec
import torch

from memsup.shared.clock import unix_s
from memsup.shared.log import log
from memsup.shared.messages import CheckpointNote, DecisionKind, FailureCause, Finished, Leaving, Pause, Phase, Stop, Welcome
from memsup.shared.nodes import read_address, refuse_strange_network
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord
from memsup.shared.settings import SettingsError
from memsup.worker.hardware import start_threads
from memsup.worker.plan.journal import read_journal
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.adding import Adding, Apart, interface_of, store_of
from memsup.worker.ranks.guest import Guest
from memsup.worker.ranks.lock import keys_of
from memsup.worker.ranks.other import Left, Meeting, Program, Work, counted, prepared_rank, take_step
from memsup.worker.session import GiveUp, Leave, Session
from memsup.worker.training import OneRank

_LOOK_S = 0.2


def follow(record: RunRecord, paths: RunPaths, welcome: Welcome, session: GuestSession) -> Finished:
    """Computes with the first machine until the run is finished. Raises `Leave`, `GiveUp` and `InputError`."""
    nodes = record.settings.nodes
    try:
        assert nodes.join is not None
        assert nodes.key is not None, "start asks for it"
        address = read_address(nodes.join, nodes.port)
        refuse_strange_network(address.host, any_network=nodes.any_network)
        keys = keys_of(nodes.key.reveal())
    except SettingsError as error:
        raise GiveUp(FailureCause.BAD_INPUT, str(error)) from None
    link = session.link
    guest = Guest(address, keys, node=record.run_id, snapshot=lambda: link.snapshot, end=link.orders.put)
    session.guest = guest
    try:
        _compute(record, paths, welcome, session, guest)
    except Leave as leave:
        if guest.finished is not None:
            return msgspec.structs.replace(guest.finished, model_path=f"{address.host}:{guest.finished.model_path}"[:4096])
        guest.say(m.Said(report=Leaving(reason=leave.reason, checkpoint=None)))
        raise
    except Left as left:
        log.warning("Another machine is gone", why=str(left.__cause__))
        raise Leave("the connection to another machine broke in the middle of a step", None) from None
    except Exception as error:
        from memsup.worker.__main__ import failed

        guest.say(m.Said(report=failed(error, record.run)))
        raise
    finally:
        guest.close()
    raise AssertionError("it computes until it is told to leave")


def _compute(record: RunRecord, paths: RunPaths, welcome: Welcome, session: GuestSession, guest: Guest) -> None:
    with session.phase(Phase.LOADING):
        log.info("Waiting for the first machine", address=record.settings.nodes.join)
        meet = _next(session, guest.meet)
        training = _prepared(record, paths, welcome, session, meet)
        guest.say(m.Loaded())
        apart = Apart()
        adding = apart.do(lambda: _met(record, meet, training), session.wait)
    training.ranks = Meeting(
        guest.say,
        lambda: _next(session, guest.work),
        lambda loss: apart.do(lambda: adding.add(loss), session.wait),
        clock=session.worked_s,
    )
    session.decided(DecisionKind.NODE_JOINED, f"This machine computes as rank {meet.rank} of {meet.ranks}.")
    with session.phase(Phase.TRAINING):
        while True:
            work = _next(session, guest.work)
            if isinstance(work, m.Evaluate):
                guest.say(m.Counts(content=counted(training)))
            else:
                assert isinstance(work, m.Compute), "the first machine adds up what was computed only"
                take_step(training, work)


def _prepared(record: RunRecord, paths: RunPaths, welcome: Welcome, session: Session, meet: m.Meet) -> OneRank:
    """The training, with the memory, threads and folders of this machine. Raises `GiveUp` where the data are others."""
    wanted = record.settings.training.threads
    if wanted is None:  # the same as in the life before: another number has other bits
        entries, _ = read_journal(paths.plan_of_rank(meet.rank))
        wanted = entries[-1].threads if entries else None
    threads = start_threads(wanted, torch.device("cpu"))
    lanes = record.settings.training.lanes or meet.begin.lanes
    begin = msgspec.structs.replace(
        meet.begin, welcome=welcome, threads=threads, lanes=1 if threads % lanes else lanes, checkpoint=None
    )
    training = prepared_rank(record, paths, session, begin, GuestProgram(), rank=meet.rank, ranks=meet.ranks)
    if training.prepared.fingerprint != meet.fingerprint:
        raise GiveUp(
            FailureCause.BAD_INPUT,
            "The data here are not those of the first machine, which may have changed since: join again with "
            "memsup start --fresh --join, which has them sent anew.",
        )
    return training


def _met(record: RunRecord, meet: m.Meet, training: OneRank) -> Adding:
    address = read_address(record.settings.nodes.join or "", record.settings.nodes.port)
    try:
        interface = interface_of(_own_address(address.host, address.port))
        store = store_of(address.host, meet.store_port, meet.ranks)
        adding = Adding(store, meet.rank, meet.ranks, training.prepared.model.parameters(), interface=interface)
        adding.give(training.state_tensors())
    except (OSError, RuntimeError) as error:
        raise Left from error
    return adding


def _own_address(host: str, port: int) -> str:
    """The address of this machine from which the other one is reached; nothing is sent."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def _next(session: GuestSession, words: queue.SimpleQueue[m.Meet] | queue.SimpleQueue[Work]) -> Any:
    """The next word of the first machine; orders are carried out meanwhile."""
    while True:
        with contextlib.suppress(queue.Empty):
            return words.get(timeout=_LOOK_S)
        session.wait()


class GuestSession(Session):
    """A session of a machine that has nothing to save."""

    guest: Guest | None = None
    _told: m.Told | None = None
    _newest: tuple[CheckpointNote, CheckpointNote] | None = None
    """The first machine's newest checkpoint, as it says and as it is told of here."""

    def wait(self) -> None:
        """To be called while the first machine is waited for, which may take as long as it likes."""
        self.tick()
        self.obey()

    def tick(self) -> None:
        super().tick()
        guest = self.guest
        if guest is None:
            return
        told = guest.told
        if told is not self._told and told is not None:
            self._told, seen = told, told.progress
            if self.link.snapshot.progress.phase is Phase.LOADING:  # later it is told of each step as it is taken here
                self.publish(step=seen.step)
            self.publish(
                checkpoint=self._elsewhere(told.checkpoint),
                digest=told.digest,
                evaluation=told.evaluation,
                epoch=seen.epoch,
                total_steps=seen.total_steps,
                samples=seen.samples,
                loss=seen.loss,
                samples_per_s=seen.samples_per_s,
                eta_s=seen.eta_s,
            )
        self.publish(nodes=(guest.reading(),))

    def _elsewhere(self, note: CheckpointNote | None) -> CheckpointNote | None:
        """The run's newest checkpoint, which lies on the first machine."""
        told, known = self._told, self._newest
        if note is None or told is None:
            return None
        if known is None or note != known[0]:
            age_s = max(0.0, told.unix_s - note.at_unix_s)  # by its own clock, which may be another day's than that here
            here = msgspec.structs.replace(note, path=f"{told.name}:{note.path}"[:4096], at_unix_s=unix_s() - age_s)
            self._newest = known = (note, here)
        return known[1]

    def leave(self, reason: str) -> None:
        raise Leave(reason, None)

    def last_checkpoint(self) -> CheckpointNote | None:
        return None

    def _leave(self, order: Pause | Stop, *, checkpoint: bool) -> None:  # noqa: ARG002
        super()._leave(order, checkpoint=False)


class GuestProgram(Program):
    """The training of a machine whose first one saves."""

    def save(self, *, last: bool) -> CheckpointNote:  # noqa: ARG002
        raise GiveUp(FailureCause.BAD_INPUT, "the first machine of the run saves; ask for it there")
