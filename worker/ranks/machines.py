"""The other machines of a run, as its first one has them: who has joined, who is missing, and what follows.

Another machine is a rank that this one has not started and cannot end. It comes through the door (`door.py`), is known by
the id of its own run, and stays while its connection does. Whoever leaves, comes anew or is not heard of for too long ends
this life of the worker: what it has is saved, the supervisor starts it again, and that life gathers the machines anew. So a
step is always computed by all or done again, and there is one way for all that can happen.

Which machines belong to the run stands in `nodes.json`, in the order in which they first came: it decides their ranks.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq

from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.commands import command
from memsup.shared.files import UnreadableError, read_document, replace_file
from memsup.shared.log import log
from memsup.shared.messages import DecisionKind, Failed, FailureCause, Leaving
from memsup.shared.nodes import Address, read_address, refuse_strange_network, unlike
from memsup.shared.paths import RunPaths
from memsup.shared.readings import NodeReading
from memsup.shared.record import RunRecord
from memsup.shared.settings import SettingsError
from memsup.worker.link import MustFail, MustLeave
from memsup.worker.ranks import messages as m
from memsup.worker.ranks.door import Door, Peer
from memsup.worker.ranks.lock import keys_of
from memsup.worker.ranks.offered import Offered
from memsup.worker.ranks.versions import versions
from memsup.worker.session import GiveUp, Session

SILENT_S = 5.0
"""A machine that was not heard of for so long is said to be silent. Each beats twice a second."""
_TELL_S = 1.0
_LOOK_S = 0.2


class Listed(msgspec.Struct, kw_only=True):
    """A machine that belongs to the run."""

    node: str
    name: str
    is_expected: bool = True
    """Whether the run waits for it. Without it, it goes on; when it comes back, it takes part again."""


_decode_list = msgspec.json.Decoder(list[Listed]).decode


@dataclass(eq=False)
class Machine:
    """A machine that is connected."""

    node: str
    name: str
    peer: Peer
    rank: int | None = None
    """It is None until the machines of this life are chosen."""
    beat: m.Beat | None = None
    silent_s: float = 0.0
    waits: bool = False
    """Whether its part of the step is computed."""


@dataclass(eq=False)
class _Roster:
    """`nodes.json`."""

    file: Path
    listed: list[Listed] = field(default_factory=list)

    def read(self) -> None:
        try:
            self.listed = read_document(self.file, _decode_list)
        except FileNotFoundError:
            pass
        except UnreadableError as error:
            log.warning("Who belongs to the run is found out anew", why=str(error))

    def write(self) -> None:
        replace_file(self.file, msgspec.json.format(msgspec.json.encode(self.listed), indent=1))

    def find(self, node: str) -> Listed | None:
        return next((one for one in self.listed if one.node == node), None)


class Machines:
    """The others of a run of `nodes.count` machines."""

    def __init__(self, record: RunRecord, paths: RunPaths, session: Session) -> None:
        """Opens the door. Raises `GiveUp`."""
        self._nodes, self._session, self._run = record.settings.nodes, session, record.run
        self._roster = _Roster(paths.state / "nodes.json")
        self._roster.read()
        self._lock = threading.Lock()
        self._here: dict[Peer, Machine] = {}
        self.members: list[Machine] = []
        """The machines that compute in this life, in the order of their ranks; empty until they are chosen."""
        self._is_chosen = self._closes = False
        self._since_told_s = 0.0
        self.answered: Callable[[Machine, m.ToFirstMachine], None] = lambda _machine, _message: None
        """What is done with what members say beyond beats."""
        try:
            assert self._nodes.address is not None, "start fills it in"
            assert self._nodes.key is not None, "start draws one"
            self.address: Address = read_address(self._nodes.address, self._nodes.port)
            self.address = self.address._replace(port=self._nodes.port)
            refuse_strange_network(self.address.host, any_network=self._nodes.any_network)
            self._door = Door(
                self.address,
                keys_of(self._nodes.key.reveal()),
                Offered(record),
                heard=self._hear,
                looked=self._look,
                broke=lambda error: self._end(MustLeave(f"the door for other machines broke: {error}")),
            )
        except SettingsError as error:
            raise GiveUp(FailureCause.BAD_INPUT, str(error)) from None
        except zmq.ZMQError as error:
            raise GiveUp(
                FailureCause.BAD_INPUT,
                f"Nobody can listen at {self.address} for the other machines: {error}. Set nodes.address to this machine's "
                f"address, or nodes.port to a free port, then: {command('start', self._run)}",
            ) from None
        self._door.start()

    # ---------------------------------------------------------------------------------------------------------------
    # For the main thread

    def gather(self) -> list[Machine]:
        """Waits for the machines of this life, and returns them in the order of their ranks. A machine that never came is
        waited for as long as that takes, since somebody has to start it there; one that is gone as long as the settings say.
        Raises `Leave` and `GiveUp`.
        """
        began_s, held_s = monotonic_s(), self._session.held_s
        is_told = False
        while not self._choose():
            if not is_told:
                log.info("Waiting for other machines", address=str(self.address), missing=self._missing())
                is_told = True
            self._session.publish(nodes=self.readings())
            self._session.tick()
            self._session.obey()
            if monotonic_s() - began_s - (self._session.held_s - held_s) > self._nodes.wait_s:
                self._go_on_without()
            threading.Event().wait(_LOOK_S)
        names = ", ".join(machine.name for machine in self.members)
        if names:
            number = len(self.members) + 1
            self._session.decided(DecisionKind.NODE_JOINED, f"{number} machines compute: this one and {names}.")
        self._session.publish(nodes=self.readings())
        return self.members

    def tell(self, machine: Machine, message: m.FromFirstMachine) -> None:
        self._door.tell(machine.peer, message)

    def silent(self) -> bool:
        """Whether one of those that compute is not heard of."""
        return any(machine.silent_s > SILENT_S for machine in self.members)

    def readings(self, shares: dict[int, float] | None = None) -> tuple[NodeReading, ...]:
        """What is told of all of them: those that are here, and those that are missing."""
        with self._lock:
            here = {machine.node: machine for machine in self._here.values()}
        told = [
            NodeReading(
                name=machine.name,
                is_here=True,
                rank=machine.rank,
                share=(shares or {}).get(machine.rank) if machine.rank is not None else None,
                waits=machine.waits,
                holds=machine.beat.holds if machine.beat else False,
                silent_s=round(machine.silent_s, 1) if machine.silent_s > SILENT_S else 0.0,
                resident_bytes=machine.beat.resident_bytes if machine.beat else None,
            )
            for machine in here.values()
        ]
        return (*told, *(NodeReading(name=one.name) for one in self._roster.listed if one.node not in here))

    def close(self, last: m.Over | m.NotHere) -> None:
        """Says a last word to all, and closes the door."""
        self._closes = True
        with self._lock:
            peers = list(self._here)
        for peer in peers:
            self._door.tell(peer, self._told())
            self._door.tell(peer, last)
        self._door.close()

    def _told(self) -> m.Told:
        seen = self._session.link.snapshot
        return m.Told(
            name=socket.gethostname()[:256],
            unix_s=unix_s(),
            progress=seen.progress,
            checkpoint=seen.checkpoint,
            digest=seen.digest,
            evaluation=seen.evaluation,
        )

    def _choose(self) -> bool:
        """Whether all who are waited for are here; these are the members then."""
        most = self._nodes.count - 1
        with self._lock:
            here = {machine.node: machine for machine in self._here.values() if machine.silent_s <= SILENT_S}
            changed = False
            for machine in here.values():
                changed |= self._enlist(machine, here, most)
            listed = [one for one in self._roster.listed[:most] if one.node in here or one.is_expected]
            missing = [one for one in listed if one.node not in here]
            if len(self._roster.listed) < most or missing:
                if changed:
                    self._roster.write()
                return False
            self.members = [here[one.node] for one in listed]
            for rank, machine in enumerate(self.members, start=1):
                machine.rank, machine.silent_s, machine.waits = rank, 0.0, False
                found = self._roster.find(machine.node)
                assert found is not None
                found.is_expected = True
            self._is_chosen = True
            self._roster.write()
        return True

    def _enlist(self, machine: Machine, here: dict[str, Machine], most: int) -> bool:
        """Puts a machine on the list, if it is new and there is a place: a free one, or that of a machine of the same name that
        is not here, whose run was begun anew.
        """
        listed = self._roster.listed
        if self._roster.find(machine.node) is not None:
            return False
        new = Listed(node=machine.node, name=machine.name)
        for place, one in enumerate(listed):
            if one.name == machine.name and one.node not in here:
                listed[place] = new
                return True
        if len(listed) < most:
            listed.append(new)
            return True
        return False

    def _missing(self) -> list[str]:
        with self._lock:
            here = {machine.node for machine in self._here.values()}
        free = self._nodes.count - 1 - len(self._roster.listed)
        return [one.name for one in self._roster.listed if one.node not in here] + ["one that never came"] * free

    def _go_on_without(self) -> None:
        """The time is up for those that were here before. Raises `GiveUp` where the run does not go on without them."""
        with self._lock:
            here = {machine.node for machine in self._here.values()}
            gone = [one for one in self._roster.listed if one.is_expected and one.node not in here]
        if gone:
            self._lose(gone)

    def _lose(self, gone: list[Listed]) -> None:
        names = ", ".join(one.name for one in gone)
        if not self._nodes.fewer:
            raise GiveUp(FailureCause.BAD_INPUT, self._has_not_come(names))
        for one in gone:
            one.is_expected = False
        self._roster.write()
        sentence = f"{names} has not been heard of for {self._nodes.wait_s:,.0f} s, so the run goes on without it."
        self._session.decided(DecisionKind.NODES_FEWER, sentence)

    def _has_not_come(self, names: str) -> str:
        return (
            f"Machine {names} has not been heard of for {self._nodes.wait_s:,.0f} s, and the run does not go on without it "
            f"(nodes.fewer): look after it there, then start again here: {command('start', self._run)}"
        )

    # ---------------------------------------------------------------------------------------------------------------
    # In the door's thread

    def _hear(self, peer: Peer, message: m.ToFirstMachine) -> None:
        if self._closes:
            return
        if isinstance(message, m.Join):
            self._join(peer, message)
            return
        machine = self._here.get(peer)
        if machine is None:
            self._door.tell(peer, m.NotHere(why="the first machine has begun anew"))
            return
        machine.silent_s = 0.0
        if isinstance(message, m.Said) and isinstance(message.report, Failed | Leaving):
            with self._lock:
                self._here.pop(peer, None)
        if isinstance(message, m.Beat):
            machine.beat = message
        elif machine.rank is not None:
            self.answered(machine, message)

    def _join(self, peer: Peer, join: m.Join) -> None:
        with self._lock:
            known = self._here.get(peer)
            if known is not None:
                known.silent_s = 0.0
                return
            if (why := unlike(join.versions, versions())) is not None:
                self._door.tell(peer, m.NotHere(why=f"this machine has {why}; have the same on both", again=False))
                return
            before = next((machine for machine in self._here.values() if machine.node == join.node), None)
            if before is not None:
                del self._here[before.peer]
            is_full = self._is_chosen and len(self.members) == self._nodes.count - 1
            is_member = any(machine.node == join.node for machine in self.members)
            if is_full and not is_member:
                why = f"there are {self._nodes.count} machines already (nodes.count), and this is none of them"
                self._door.tell(peer, m.NotHere(why=why, again=False))
                return
            self._here[peer] = Machine(node=join.node, name=join.name, peer=peer)
        if self._is_chosen:
            what = "has come anew" if is_member else "is here, which the run had gone on without"
            self._end(MustLeave(f"machine {join.name} {what}"))

    def _look(self, elapsed_s: float) -> None:
        for machine in list(self._here.values()):
            machine.silent_s += min(elapsed_s, 1.0)  # a machine that slept has heard nothing itself
            if machine.silent_s > self._nodes.wait_s and not self._closes:
                with self._lock:
                    self._here.pop(machine.peer, None)
                if machine.rank is not None:
                    self._is_lost(machine)
        self._since_told_s += elapsed_s
        if self._since_told_s >= _TELL_S:
            self._since_told_s = 0.0
            for peer in list(self._here):
                self._door.tell(peer, self._told())

    def _is_lost(self, machine: Machine) -> None:
        listed = self._roster.find(machine.node)
        if not self._nodes.fewer:
            self._end(MustFail(GiveUp(FailureCause.BAD_INPUT, self._has_not_come(machine.name))))
        elif listed is not None:
            try:
                self._lose([listed])
            except OSError as error:
                log.warning("What was decided about a machine could not be written", why=str(error))
            self._end(MustLeave(f"machine {machine.name} has not been heard of for {self._nodes.wait_s:,.0f} s"))

    def _end(self, word: MustFail | MustLeave) -> None:
        if not self._closes:
            self._session.link.orders.put(word)
