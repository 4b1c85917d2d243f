"""Rank 0's side: the other ranks as processes, what they are told, and what they say.

A thread listens to all of them, so that a rank that dies is noticed within a moment, whatever the main thread does. What it
means for the run is put among the orders: at the next boundary rank 0, whose state is whole there, saves and leaves, and the
supervisor starts all of them again. With one rank there is no thread, and every method comes back at once.

Ranks on other machines are here as well, as far as a step goes; who they are, and what their absence means, is in
`machines.py`. They are told no orders: each machine has its own supervisor.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import torch

from memsup.shared.clock import monotonic_s
from memsup.shared.log import log
from memsup.shared.messages import (
    AnyReport,
    Decided,
    DecisionKind,
    Failed,
    FailureCause,
    Finished,
    Leaving,
    LimitMemory,
    LimitMicroBatch,
    OutOfMemory,
    Pace,
    Pause,
    Resume,
    Welcome,
)
from memsup.shared.paths import RunPaths
from memsup.shared.readings import NodeReading, RankReading
from memsup.worker.link import MustFail, MustLeave
from memsup.worker.memory import DeviceMemory
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.adding import Adding, Apart, Way, interface_of, store_at, store_in
from memsup.worker.ranks.machines import Machine, Machines
from memsup.worker.ranks.shares import Measured, Shares, better, equal
from memsup.worker.session import GiveUp, Session
from memsup.worker.state import SharedOut
from memsup.worker.tasks.sums import Counts
from memsup.worker.training import OneRank

if TYPE_CHECKING:
    from memsup.worker.ranks.sharded import Sharded

SILENT_S = 60.0
"""A rank whose link says nothing for so long, while rank 0 could listen, is killed. Its link beats twice a second."""
LOOK_STEPS = 8
"""The shares are looked at after so many steps, of which the first says nothing where a life or a share is new."""
_LOOK_S = 0.05
_ENDS_WITHIN_S = 2.0


T = TypeVar("T")

_THROUGH_HOST = (
    "This torch has no NCCL, by which GPUs reach each other, so gradients are added up by way of host memory, which is slower."
)
_Answer = m.Loaded | m.Ready | m.Counted | m.Counts
_FOR_GOOD = {FailureCause.BAD_INPUT, FailureCause.OUT_OF_MEMORY, FailureCause.NOT_FINITE}
"""What another machine cannot mend by beginning anew."""


@dataclass(eq=False)
class _Other:
    """Another rank, as rank 0 knows it."""

    rank: int
    process: subprocess.Popen[bytes]
    end: socket.socket
    beat: m.Beat | None = None
    silent_s: float = 0.0
    """The time in which it was listened to since its last word."""
    waits: bool = False
    """Whether its part of the step is computed."""
    is_gone: bool = False
    parts: socket.socket | None = None
    """Where its rows of a model that is shared out come from."""


class Ranks:
    """All ranks of a run, as rank 0 has them."""

    def __init__(self, here: int, machines: Machines | None = None, *, shares_model: bool = False) -> None:
        """So many ranks are `here`, on this machine; and one on each of those `machines` that were gathered. With
        `shares_model` those here share the model (`sharded.py`).
        """
        self.here = here
        self.share_model = shares_model and here > 1
        self.lacks_a_part = False
        """Whether a rank is gone that had a part of the model, so that there is nothing whole to be saved."""
        self.exhausted: list[OutOfMemory] = []
        """What other ranks have run out of memory with, of a model that is shared out."""
        self._machines = machines
        self._members: list[Machine] = [] if machines is None else machines.members
        self.count = count = here + len(self._members)
        self._apart: Apart | None = None
        self._last: m.Over | m.NotHere = m.NotHere(why="the first machine has left, or begins anew")
        self._others: list[_Other] = []
        self._answers: queue.SimpleQueue[tuple[int, _Answer] | None] = queue.SimpleQueue()
        self._adding: Adding | None = None
        self._folder: Path | None = None
        self._session: Session | None = None
        self._memory: DeviceMemory | None = None
        self._when = "while it loaded"
        """What they are doing, for people."""
        self._step: int | None = None
        """The step that the others compute, or have computed last. None means that there was none yet."""
        self.is_adding = False
        """Whether all ranks are adding up that step, or are done, so that none can do its part again."""
        self._shares = equal(count)
        """Those of the step that the others compute."""
        self._began_s = self._added_s = self._beside_s = 0.0
        self._measured: list[dict[int, m.Ready]] = []
        """What each rank has told of each step since the shares were looked at."""
        self._closes = False
        self._thread: threading.Thread | None = None

    # ---------------------------------------------------------------------------------------------------------------
    # Their beginning and their end

    def start(self, paths: RunPaths, session: Session, threads: int, memory: DeviceMemory | None = None) -> None:
        """Starts the others, which load what they need while rank 0 does. Each computes with `threads`. `memory` is that of
        rank 0's GPU; None means that CPUs compute. Raises OSError.
        """
        self._session, self._memory = session, memory
        if self._machines is not None and self._members:
            self._machines.answered = self._hear_machine
            self._apart = Apart()
        if self.here == 1:
            return
        session.link.ranks_now = self.ranks_now
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-", dir=paths.runtime))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        for rank in range(1, self.here):
            own_end, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            parts, other_parts = socket.socketpair() if self.share_model else (None, None)
            with other_end, other_parts or contextlib.nullcontext():
                command = [sys.executable, "-P", "-m", "memsup.worker.ranks"]
                command += ["--run", paths.name, "--rank", str(rank), "--ranks", str(self.count)]
                command += ["--fd", str(other_end.fileno())]
                fds = [other_end.fileno()]
                if other_parts is not None:
                    fds.append(other_parts.fileno())
                    command += ["--parts-fd", str(other_parts.fileno())]
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment)
            self._others.append(_Other(rank, process, own_end, parts=parts))
        self._thread = threading.Thread(target=self._listen, name="ranks", daemon=True)
        self._thread.start()

    def begin(self, training: OneRank, checkpoint: Path | None, welcome: Welcome) -> None:
        """Has the others load what rank 0 has loaded, and take over its parameters. The limit of memory in `welcome` is what
        each may use. Raises `Leave` and `GiveUp`.
        """
        if self.count == 1 or self.share_model:
            return
        begin = m.Begin(
            checkpoint=None if checkpoint is None else str(checkpoint),
            padding=training.prepared.padding,
            store="" if self._folder is None else str(self._folder / "store"),
            device=training.device.type,
            threads=training.threads,
            lanes=len(training.lanes),
            packed=training.plan.at(training.step + 1).packed,
            welcome=welcome,
            step=training.step,
            done_before=training.done_before,
        )
        if self._machines is not None:
            self._meet_machines(training, begin)
            return
        self._tell(begin)
        self._wait_for_all()
        with self._explained():
            self._adding = self._met(
                lambda: Adding(
                    store_in(Path(begin.store), self.count),
                    0,
                    self.count,
                    training.prepared.model.parameters(),
                    device=training.device,
                    memory=training.device_memory,
                    meanwhile=self._look_for_the_dead,
                )
            )
            self._adding.give(training.state_tensors())
        way = self._adding.way
        log.info("Ranks", count=self.count, pids=[other.process.pid for other in self._others], way=way.value)
        if way is Way.THROUGH_HOST and training.step == 0:  # else an earlier life has said so
            session = self._session
            assert session is not None
            session.decided(DecisionKind.CUT_REFUSED, _THROUGH_HOST)

    def meet(
        self, *, checkpoint: Path | None, padding: Padding, threads: int, packed: bool, welcome: Welcome, step: int
    ) -> None:
        """Before `begin`, where the model is to be shared out: has the others load it, each by itself, and go on from the same
        checkpoint, and meets them. Raises `Leave` and `GiveUp`.
        """
        assert self._folder is not None, "they were started"
        begin = m.Begin(
            checkpoint=None if checkpoint is None else str(checkpoint),
            padding=padding,
            store=str(self._folder / "store"),
            device="cpu",
            threads=threads,
            lanes=1,
            packed=packed,
            welcome=welcome,
            step=step,
            done_before=step,
        )
        self._tell(begin)
        self._wait_for_all()
        with self._explained():
            self._adding = self._met(lambda: Adding(store_in(Path(begin.store), self.count), 0, self.count, ()))
        log.info("Ranks share the model", count=self.count, pids=[other.process.pid for other in self._others])

    def all_rows_of(self, sharded: Sharded | None, step: int) -> SharedOut | None:
        """What gives all rows of a model that is shared out, as they are after `step`. None means that it is not."""
        if sharded is None:
            return None
        ends = [other.parts for other in self._others if other.parts is not None]
        return lambda stem, tick, staging: sharded.outgoing(stem, ends, step, tick, staging)

    def _meet_machines(self, training: OneRank, begin: m.Begin) -> None:
        """As `begin`, with ranks on other machines."""
        assert self._machines is not None
        host = self._machines.address.host
        try:
            interface = interface_of(host)
            store, port = store_at(host, self.count)
        except (OSError, RuntimeError) as error:
            what = (
                f"The other machines cannot meet this one at {host}: {error}. Set nodes.address to an address of this machine."
            )
            raise GiveUp(FailureCause.BAD_INPUT, what) from None
        fingerprint = training.prepared.fingerprint
        for machine in self._members:
            assert machine.rank is not None
            meet = m.Meet(begin=begin, rank=machine.rank, ranks=self.count, store_port=port, fingerprint=fingerprint)
            self._machines.tell(machine, meet)
        self._wait_for_all()

        def meet_all() -> Adding:
            adding = Adding(store, 0, self.count, training.prepared.model.parameters(), interface=interface)
            adding.give(training.state_tensors())
            return adding

        with self._explained():
            self._adding = self._met(meet_all)
        log.info("Ranks", count=self.count, machines=[machine.name for machine in self._members])

    def finished(self, finished: Finished) -> None:
        """Has the other machines know, at the end, that the run is finished."""
        self._last = m.Over(finished=finished)

    def close(self) -> None:
        """Ends the others: there is nothing that only they know."""
        self._closes = True
        if self._machines is not None:
            self._machines.close(self._last)
        elif self._adding is not None:  # with machines, one may be gone while it is waited for; the process ends all the same
            self._adding.close()
            self._adding = None
        for other in self._others:
            with contextlib.suppress(OSError):
                other.end.shutdown(socket.SHUT_RDWR)  # which they take as the end
        if self._thread is not None:
            self._thread.join(_ENDS_WITHIN_S)
        for other in self._others:
            other.end.close()
            if other.parts is not None:
                other.parts.close()
            try:
                other.process.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                other.process.kill()
                other.process.wait()
        self._others.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------------------
    # A step

    def shares(self, plan: Entry) -> Shares:
        """The shares of a step under this plan."""
        return plan.shares if len(plan.shares) == self.count else equal(self.count)

    def compute(self, step: int, *, learning_rate: float, loss_scale: float, shares: Shares, plan: Entry | None = None) -> None:
        """Has the others compute their parts of `step`, unless they do so already."""
        if self.count == 1 or (self._step == step and not self.is_adding):
            return
        assert self._session is not None
        self._begin_part()
        if shares != self._shares:
            self._measured.clear()
        self._shares = shares
        self._step, self._when, self.is_adding = step, f"in step {step:,}", False
        self._began_s = self._session.worked_s()
        self._tell(m.Compute(step=step, learning_rate=learning_rate, loss_scale=loss_scale, shares=shares, plan=plan))

    def add_up(self, training: OneRank, loss: torch.Tensor) -> torch.Tensor:
        """Waits until all parts are done, adds up their gradients, and returns the loss of the step. Raises `Leave` and
        `GiveUp`.
        """
        if self.count == 1:
            return loss
        assert self._adding is not None
        assert self._session is not None
        if self._memory is not None:
            self._memory.finish_queued()  # so that what follows is the time of its work, and nothing of it fails later
        step, took_s = training.step + 1, self._session.worked_s() - self._began_s
        done = {0: m.Ready(step=step, tokens=training.own_tokens(step), took_s=took_s, beside_s=self._beside_s)}
        done |= {rank: message for rank, message in self._wait_for_all().items() if isinstance(message, m.Ready)}
        self._measured = [*self._measured[-LOOK_STEPS:], done]
        self._tell(m.Add())
        self.is_adding = True
        adding = self._adding
        with self._explained():
            added = adding.add(loss) if self._apart is None else self._met(lambda: adding.add(loss))
        self._added_s = self._session.worked_s()
        return added

    def has_taken_step(self) -> None:
        """Takes in that rank 0 has changed its parameters, and all that follows from it."""
        if self.count > 1:
            assert self._session is not None
            self._beside_s = self._session.worked_s() - self._added_s

    def broken(self, error: Exception) -> None:
        """Raises what is known of a rank that is gone, or else `error`; or `Leave`, where that rank ran out of memory."""
        with self._explained():
            raise error

    def evaluate(self, step: int, plan: Entry | None = None) -> None:
        """Has the others count over their parts of the evaluation rows, as the model is after `step`; all in batches of one
        `plan`, where they share the model.
        """
        if self.count > 1:
            self._begin_part()
            self._when = f"in the evaluation after step {step:,}"
            self._tell(m.Evaluate(folder=None if self._folder is None else str(self._folder), plan=plan))

    def counted(self) -> list[Counts]:
        """What the others have counted, in the order of the ranks. Raises `Leave` and `GiveUp`."""
        if self.count == 1:
            return []
        answers = self._wait_for_all()
        return [msgspec.msgpack.decode(self._counts_of(rank, answers[rank])) for rank in range(1, self.count)]

    def _counts_of(self, rank: int, answer: _Answer) -> bytes:
        if isinstance(answer, m.Counts):
            return answer.content
        assert self._folder is not None
        return m.counts_file(self._folder, rank).read_bytes()

    def _begin_part(self) -> None:
        """Nobody is done with what is told next."""
        for other in self._others:
            other.waits = False
        for machine in self._members:
            machine.waits = False

    def better_shares(self, shares: Shares) -> Shares | None:
        """Shares with which the ranks, as fast as they were lately, would be done sooner. None means that there are none, or
        that it is not the time to look.
        """
        if self.count == 1 or self.share_model or len(self._measured) <= LOOK_STEPS:
            return None
        measured, self._measured = self._measured[-LOOK_STEPS:], self._measured[-1:]
        paces = []
        for rank in range(self.count):
            took_s = sum(done[rank].took_s for done in measured)
            tokens = sum(done[rank].tokens for done in measured)
            # Nobody begins before rank 0 says so.
            beside_s = sum(max(done[rank].beside_s, done[0].beside_s) for done in measured) / LOOK_STEPS
            if not tokens or not took_s:
                return None
            paces.append(Measured(tokens / took_s, beside_s))
        return better(shares, paces, sum(each.tokens for done in measured for each in done.values()) / LOOK_STEPS)

    def pass_on(self, order: Pace | Pause | Resume | LimitMicroBatch | LimitMemory, rank: int | None = None) -> bool:
        """Has the others of this machine obey an order of the supervisor's as well, or one of them alone. Other machines have
        their own; they come to wait for this one. Returns whether there was somebody to tell.
        """
        told = [other for other in self._others if rank in (None, other.rank)]
        for other in told:
            with contextlib.suppress(OSError):  # it is gone, and the thread sees that
                m.send(other.end, m.Obey(order=order))
        return bool(told)

    def node_readings(self, shares: Shares) -> tuple[NodeReading, ...] | None:
        """What is told of other machines. None means that the run has none."""
        if self._machines is None:
            return None
        return self._machines.readings({rank: share / sum(shares) for rank, share in enumerate(shares)})

    def readings(self, shares: Shares) -> tuple[RankReading, ...] | None:
        """What is told of the ranks of this machine. None means that there is one."""
        if self.here == 1:
            return None
        whole = sum(shares)
        others = [RankReading(share=shares[other.rank] / whole, pid=other.process.pid) for other in self._others]
        return self.ranks_now((RankReading(share=shares[0] / whole, pid=os.getpid()), *others))

    def ranks_now(self, ranks: tuple[RankReading, ...]) -> tuple[RankReading, ...]:
        """The same readings, with what the ranks hold now and whether they wait; from any thread."""
        first, *others = ranks
        if (memory := self._memory) is not None:
            allocated, reserved = memory.allocated_bytes(), memory.reserved_bytes()
            held = {"cuda_allocated_bytes": allocated, "cuda_reserved_bytes": reserved}
            first = msgspec.structs.replace(first, gpu=memory.uuid, **held)
        of_pid = {other.process.pid: other for other in list(self._others)}
        return (first, *(self._now(reading, of_pid.get(reading.pid)) for reading in others))

    @staticmethod
    def _now(reading: RankReading, other: _Other | None) -> RankReading:
        beat = None if other is None else other.beat
        if other is None or beat is None:
            return reading
        return msgspec.structs.replace(
            reading,
            micro_tokens=beat.micro_tokens,
            resident_bytes=beat.resident_bytes,
            waits=other.waits,
            gpu=beat.gpu,
            cuda_allocated_bytes=beat.cuda_allocated_bytes,
            cuda_reserved_bytes=beat.cuda_reserved_bytes,
        )

    # ---------------------------------------------------------------------------------------------------------------
    # Talking

    def _tell(self, message: m.FromFirst) -> None:
        if self._machines is not None and isinstance(message, m.Compute | m.Evaluate | m.Add):
            for machine in self._members:
                self._machines.tell(machine, message)
        for other in self._others:
            with contextlib.suppress(OSError):  # it is gone, and the thread sees that
                m.send(other.end, message)

    def _wait_for_all(self) -> dict[int, _Answer]:
        """The next answer of each. What is ordered meanwhile is carried out; the worker counts as moving while one of them gets
        on.
        """
        assert self._session is not None
        answers: dict[int, _Answer] = {}
        ticks = self._ticks()
        while len(answers) < self.count - 1:
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=_LOOK_S)
                if answer is not None:
                    answers[answer[0]] = answer[1]
            self._meanwhile(gets_on=ticks != (ticks := self._ticks()))
        return answers

    def _meanwhile(self, *, gets_on: bool) -> None:
        """Carries out what was ordered while the others are waited for. Other machines may take as long as they like: they have
        a supervisor each, which sees to it that they do not hang, and a time after which they count as gone.
        """
        assert self._session is not None
        if gets_on or self._members:
            self._session.tick()
        if self._machines is not None:
            self._session.publish(nodes=self.node_readings(self._shares))
        self._session.obey()

    def _met(self, meet: Callable[[], T]) -> T:
        """What `meet` gives, which waits for the others; where one of them dies meanwhile it would wait for as long as anybody
        does. Raises `Leave`, `GiveUp` and RuntimeError.
        """
        assert self._session is not None
        if self._apart is not None:
            return self._apart.do(meet, lambda: self._meanwhile(gets_on=True))
        met: queue.SimpleQueue[T | RuntimeError] = queue.SimpleQueue()

        def wait() -> None:
            try:
                met.put(meet())
            except RuntimeError as error:
                met.put(error)

        threading.Thread(target=wait, name="meeting", daemon=True).start()
        while True:
            self._session.obey()
            with contextlib.suppress(queue.Empty):
                found = met.get(timeout=_LOOK_S)
                if isinstance(found, RuntimeError):
                    raise found
                return found

    def _look_for_the_dead(self) -> None:
        """Leaves a collective on GPUs that another rank has left, before anything waits for the device. Raises as `obey`."""
        assert self._session is not None
        if any(other.is_gone for other in self._others):
            if self._adding is not None:
                self._adding.call_off()
            self._session.obey()  # where the thread has put what it found

    def _ticks(self) -> list[int]:
        return [other.beat.ticks if other.beat else 0 for other in self._others]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises what is known of a rank that died in place of the error of a collective that it left."""
        try:
            yield
        except RuntimeError:
            assert self._session is not None
            until_s = monotonic_s() + 2 * _ENDS_WITHIN_S
            while monotonic_s() < until_s:
                self._session.obey()  # where the thread has put what it found
                with contextlib.suppress(queue.Empty):
                    self._answers.get(timeout=_LOOK_S)
            if self._members:  # whose own supervisor knows more, and begins it anew
                self._session.decided(DecisionKind.NODE_LOST, f"The connection to another machine broke {self._when}.")
                self._session.leave("the connection to another machine broke")
            raise

    # ---------------------------------------------------------------------------------------------------------------
    # The thread

    def _listen(self) -> None:
        poll = select.poll()
        by_fd = {other.end.fileno(): other for other in self._others}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        last_s = monotonic_s()
        while by_fd:
            ready = poll.poll(500)
            now_s = monotonic_s()
            for other in by_fd.values():
                other.silent_s += min(now_s - last_s, 1.0)  # a machine that slept, or a tree that was frozen, was not silent
            last_s = now_s
            for fd, _ in ready:
                other = by_fd[fd]
                if not self._hear(other):
                    poll.unregister(fd)
                    del by_fd[fd]
                    self._is_gone(other)
            for other in by_fd.values():
                if other.silent_s > SILENT_S and not self._closes:
                    log.error("A rank says nothing", rank=other.rank, pid=other.process.pid, silent_s=round(other.silent_s))
                    other.process.kill()

    def _hear(self, other: _Other) -> bool:
        """Takes in a message; returns whether there was one, and not the end."""
        try:
            message = m.receive_to_first(other.end)
        except OSError:  # closed by this side
            return False
        if message is None:
            return False
        other.silent_s = 0.0
        match message:
            case m.Beat():
                other.beat = message
            case m.Loaded() | m.Ready() | m.Counted():
                other.waits = True
                self._answers.put((other.rank, message))
            case m.Said(report):
                self._pass_up(other, report)
        return True

    def _pass_up(self, other: _Other, report: AnyReport) -> None:
        assert self._session is not None
        who = f"Rank {other.rank}"
        match report:
            case Failed():
                other.is_gone = True
                self.lacks_a_part = self.share_model
                others_bytes, text = report.device_others_bytes, f"{who}: {report.message}"
                error = GiveUp(report.cause, text, step=report.step, device_others_bytes=others_bytes, rank=other.rank)
                self._end(MustFail(error))
            case Leaving():
                other.is_gone = self.lacks_a_part = self.share_model
                self._end(MustLeave(f"{who}: {report.reason}"))
            case OutOfMemory() | Decided():
                if isinstance(report, OutOfMemory) and self.share_model:
                    self.exhausted.append(report)
                self._session.link.report(report)

    def _is_gone(self, other: _Other) -> None:
        """A rank has ended without a word, unless it was to."""
        if self._closes or other.is_gone:
            return
        try:
            status = other.process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            other.process.kill()
            status = other.process.wait()
        other.is_gone = True
        self.lacks_a_part = self.share_model
        how = f"was killed by {_name(-status)}" if status < 0 else f"ended with exit code {status}"
        if other.silent_s > SILENT_S:
            how = f"said nothing for {SILENT_S:.0f} s and was killed"
        what = f"Rank {other.rank} {how} {self._when}, so the step ended for all {self.count} ranks."
        self._end(MustFail(GiveUp(FailureCause.CRASH, what, step=self._step, exit_status=status)))

    def _hear_machine(self, machine: Machine, message: m.ToFirstMachine) -> None:
        """What a machine says beyond its beats; called in the door's thread."""
        assert self._session is not None
        assert machine.rank is not None
        match message:
            case m.Loaded() | m.Ready() | m.Counts():
                machine.waits = True
                self._answers.put((machine.rank, message))
            case m.Said(report=OutOfMemory() | Decided() as report):
                self._session.link.report(report)
            case m.Said(report=Failed() as report) if report.cause in _FOR_GOOD:
                self._end(MustFail(GiveUp(report.cause, f"Machine {machine.name}: {report.message}", step=report.step)))
            case m.Said(report=Failed(message=why) | Leaving(reason=why)):
                self._session.decided(DecisionKind.NODE_LOST, f"Machine {machine.name} has left {self._when}: {why}")
                self._end(MustLeave(f"machine {machine.name} has left"))

    def _end(self, word: MustFail | MustLeave) -> None:
        assert self._session is not None
        if not self._closes:
            self._session.link.orders.put(word)
            self._answers.put(None)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
