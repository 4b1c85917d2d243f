"""The supervisor process: a loop that senses, decides, acts on the worker's process, records and tells.

One thread and one poll: sockets, the worker's pidfd, the GPU probe and signals wake the loop, otherwise the next look at memory
does. What it reads goes as values into the pure parts (`decide/`), and what they answer is carried out by `_perform`. Nothing
is decided here, and nothing blocks: the only wait is the poll.

Three things turn with the loop. `on_look` is the guard's tick, up to a hundred times a second: memory, the ladder, and what
follows from it. `on_slow_look` comes once a second, for all that is in no hurry. Everything else answers an event.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import signal
import time
from collections.abc import Iterable, Set
from functools import partial
from pathlib import Path

import msgspec

from memsup.shared import messages as m
from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.messages import Failed, RequestKind
from memsup.shared.paths import PathError, RunPaths
from memsup.shared.record import RunRecord, decode_settings
from memsup.shared.settings import SettingsError
from memsup.shared.status import Status, encode_status
from memsup.supervisor.daemon import awaited, claims
from memsup.supervisor.daemon.hours import clock_of
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.daemon.schedule import SOON_S, Schedule
from memsup.supervisor.daemon.sd_notify import Notifier
from memsup.supervisor.daemon.self_protection import protect, settle
from memsup.supervisor.daemon.signals import Signals
from memsup.supervisor.daemon.sockets import NOBODY, Sockets
from memsup.supervisor.daemon.systemd import GO_ON, exit_status
from memsup.supervisor.decide import taking_over
from memsup.supervisor.decide.after_power_loss import restraint_of
from memsup.supervisor.decide.claims import ALONE, sharing
from memsup.supervisor.decide.events import By, Event
from memsup.supervisor.decide.guard import Guard, without, would_compute
from memsup.supervisor.decide.ladder import Ladder, MemoryLimits
from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.decide.run.actions import (
    AbandonMove,
    Action,
    Answer,
    ClaimRoom,
    CoolDown,
    Freeze,
    GiveUpState,
    Kill,
    MoveCard,
    Quit,
    Record,
    SaveBudget,
    SaveOffCard,
    SaveQueued,
    SaveWaiver,
    SaveWish,
    Send,
    Spawn,
    Terminate,
    Thaw,
    WarmUp,
)
from memsup.supervisor.decide.run.card import Moved, Place, Whole
from memsup.supervisor.decide.run.freed import NOTHING_KNOWN
from memsup.supervisor.decide.run.hours import WORTH_S, rest_of
from memsup.supervisor.decide.run.in_memory import InMemory, asked_in
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.one_life import Attachment, Stage
from memsup.supervisor.decide.run.warm import NEEDS_BYTES, Standby, Warmth
from memsup.supervisor.decide.tiers import Limits, claim_of, created_with, deciding_gpu, resolve, resolve_limits
from memsup.supervisor.devices import Devices, Load
from memsup.supervisor.fence import choose_fence
from memsup.supervisor.fence.kill import Deadman, KillState
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.kernel.children import become_subreaper, why_not_started
from memsup.supervisor.night import Night, explain
from memsup.supervisor.record.earlier_life import (
    checkpoint_folder,
    newest_checkpoint,
    note_of,
    progress_at,
    read_budget,
    was_attached_before,
)
from memsup.supervisor.record.journal import Journal, budget_file
from memsup.supervisor.record.scribe import Scribe
from memsup.supervisor.record.status import Surroundings, status_of
from memsup.supervisor.sense.gpu.facts import facts
from memsup.supervisor.sense.machine import look
from memsup.supervisor.sense.memory import MemorySensor, read_disk
from memsup.supervisor.words import plural

LEASE_S = 30.0
GPU_FACTS_S = 5.0
"""The first look at the GPUs, before the loop runs, may take this long: waking a driver takes seconds."""
LAST_OUTPUT_WITHIN_S = 1.0
"""What the worker has printed has this long to come into its log when the supervisor ends."""
WRITTEN_WITHIN_S = 5.0
"""The last records have this long to be written when the supervisor ends."""


def memory_limits(limits: Limits) -> MemoryLimits:
    """What the ladder judges memory by."""
    return MemoryLimits(worker_bytes=limits.worker_limit_bytes, reserve_bytes=limits.reserve_free_bytes)


class Supervisor:
    def __init__(self, paths: RunPaths, record: RunRecord, lock: Lock) -> None:
        """Does everything that takes time or can fail, before the worker exists.

        Raises `PathError`, `SettingsError` and OSError, and leaves no fence then.
        """
        self.paths, self.record = paths, record
        self.notifier = Notifier(os.environ)
        self.scribe = Scribe()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        newest = newest_checkpoint(paths, record)
        death = explain(paths, record, boot, newest)
        clock = clock_of(record.settings.hours, unix_s())
        rests = rest_of(clock, record.waived_unix_s, WORTH_S) is not None
        has_begun = record.queued is None
        record.gentle = record.gentle or (has_begun and death is not None and death.machine_died)

        device = record.settings.training.device
        gpus, _ = facts(GPU_FACTS_S) if device != "cpu" else ((), None)
        machine = look(paths.state, gpus)
        on_gpu = device.startswith("cuda") or bool(gpus)
        with claims.turn(paths):
            others = claims.beside(paths, keep_own=True) if has_begun and not rests else ALONE
            origins, is_command = created_with(record.settings), bool(record.command)
            limits = resolve(record.settings, origins, machine, beside=others, is_command=is_command).limits
            checkpoints = self._checkpoints()
            if (why := sharing(others.others, checkpoints)) is not None:
                raise SettingsError(why)
            claim = claim_of(record, limits, on_gpu=on_gpu, checkpoints=checkpoints)
            claims.claim(paths, msgspec.structs.replace(claim, waits=claim.waits or rests))
        restraint = restraint_of(record, watches_gpus=on_gpu)

        self.signals = Signals()
        self.sockets = Sockets(paths)
        self.devices = Devices(
            record.settings.limits,
            watches_gpus=on_gpu,
            power_record=paths.state.parent / ".power-limits.json",
            is_wsl=machine.is_wsl,
            has_own_pids=machine.has_own_pids,
            restraint=restraint,
        )
        # After all that can fail, so that nobody has to take it away again.
        fence = choose_fence(record.run_id, limits.fence_bytes, device_is_cuda=on_gpu).fence
        deadman = Deadman(fence.name) if fence.folder is None else None
        self.worker = WorkerProcess(paths, record, fence, machine.cpus, deadman=deadman)
        now_s = monotonic_s()
        self.schedule = Schedule(now_s)
        self.memory_sensor = MemorySensor(fence)
        self.guard = Guard(
            Ladder(memory_limits(limits)),
            memory=self.memory_sensor.read(now_s),
            disk=read_disk(now_s, paths.state),
        )
        self.life = Lifecycle(
            wanted=record.wanted,
            pause_mode=record.pause_mode,
            run=record.run,
            run_id=record.run_id,
            lease_s=LEASE_S,
            memory_limit_bytes=limits.worker_limit_bytes,
            is_command=record.command is not None,
            continue_on_cpu=record.settings.recovery.continue_on_cpu,
            standby=Standby(asked=record.settings.recovery.standby),
            saves_elsewhere=record.settings.nodes.join is not None,
            in_memory=InMemory(asked=asked_in(record.settings)),
            queued=None if record.queued is None else tuple(record.queued),
            not_before=record.not_before,
            clock=clock,
            waived_unix_s=record.waived_unix_s,
            checkpoint=note_of(newest),
            before=progress_at(note_of(newest), paths, record),
            budget=read_budget(budget_file(paths)),
            most_micro_tokens=restraint.most_micro_tokens,
        )
        self.journal = Journal(paths, record, boot, self.scribe, self.life, self.guard, lock.take_again)
        self.night = Night(paths, record, self.scribe, boot, death, limits)
        self.poller = selectors.DefaultSelector()
        self.quitting = False

    # -- startup, main loop, shutdown ---------------------------------------------------------------------------------

    def run(self) -> None:
        self.startup()
        try:
            self.main_loop()
        finally:
            self.shutdown()

    def startup(self) -> None:
        become_subreaper()
        protections = protect()
        self.scribe.start()
        for watched in (self.sockets.worker, self.sockets.control, self.signals.fd, self.devices, self.worker.card):
            self.poller.register(watched, selectors.EVENT_READ)
        now_s = monotonic_s()
        self.schedule = Schedule(now_s)  # the time until here is not the loop's lateness
        self.journal.record(now_s, *self.night.begin(now_s))
        for protection in protections:
            event = Event.PROTECTION if protection.holds else Event.NO_PROTECTION
            self.journal.record(now_s, Record(event=event, reason=protection.text, by=By.SUPERVISOR))
        death = self.night.death
        if death is not None and death.machine_died:
            self.journal.save_run(self.record)
        if death is not None and death.waits is not None:
            self._perform(now_s, self.life.on_machine_died(now_s, death.waits))
        leftover, was_attached = self.worker.fence.populated() is True, was_attached_before(self.paths, self.record)
        begun = self.life.on_start(
            now_s,
            leftover=leftover,
            was_attached=was_attached,
            stands=leftover and self.worker.fence.frozen() is True,
            off_card_pids=tuple(sorted(set(self.record.off_card_pids or ()) & set(self.worker.fence.pids()))),
        )
        self._perform(now_s, begun)
        self.notifier.ready()

    def main_loop(self) -> None:
        while not self.quitting:
            due_s = min(self.devices.due_s(self.schedule.woke_s), self.sockets.due_s())
            turn = self.schedule.plan(monotonic_s(), due_s)
            woken = {key.fd for key, _ in self.poller.select(turn.wait_s)}
            now_s = monotonic_s()
            self.schedule.woke(now_s, turn)
            try:
                self.on_wake(now_s, woken)
            except Exception:  # a fault of ours must not cost the guard: the next look is what counts
                self.journal.own_error()

    def on_wake(self, now_s: float, woken: Set[int]) -> None:
        if self.schedule.is_look_due(now_s):
            self.on_look(now_s)
        if self.signals.fd in woken:
            self.on_signals(now_s)
        if self.sockets.worker.fileno() in woken or self.sockets.worker.is_due(now_s):
            self.on_reports(now_s)
        if self.sockets.control.fileno() in woken or self.sockets.control.is_due(now_s):
            self.on_requests(now_s)
        if self.devices.fileno() in woken:
            self.devices.on_readable(now_s)
        self.devices.on_tick(now_s)
        if (given_back := self.devices.given_back(now_s)) is not None:
            self._perform(now_s, self.life.on_given_back(now_s, given_back))
        if self.worker.card.fileno() in woken and (moved := self.worker.card.answer()) is not None:
            self.on_card_moved(now_s, moved)
        self.on_worker_end(now_s, woken)
        if self.schedule.is_slow_look_due(now_s):
            self.on_slow_look(now_s)
        if self.journal.state_changed():
            self.notifier.tell(f"{self.life.state}: run {self.paths.name}")
            self._show(now_s, self._status(), durable=True)
        self.notifier.alive(now_s)

    def shutdown(self) -> None:
        now_s = monotonic_s()
        self.notifier.stopping()
        self.worker.kill(now_s)
        while self.worker.step(now_s) is KillState.KILLING:
            time.sleep(SOON_S)
            now_s = monotonic_s()
        self.worker.close()
        if not self.worker.undead:
            self.scribe.carry_out(str(self.paths.claim), partial(claims.give_up, self.paths))
        self.worker.write_out(LAST_OUTPUT_WITHIN_S)
        self.devices.close()
        status = self._status()
        self._show(now_s, status, durable=True)
        self.sockets.close()  # nobody is to wait for an answer that comes no more
        self.journal.record(now_s, *self.night.say_goodbye(now_s, status, self.life.stance.duty_fraction))
        if self.scribe.finish(within_s=WRITTEN_WITHIN_S):
            self.night.close(monotonic_s(), self._good_end())
        self.journal.leave_run(self.record)

    @property
    def exit_status(self) -> int:
        """What the service manager is to make of the end (`daemon/systemd.py`)."""
        return exit_status(self.life.terminal, self.record.wanted)

    def _good_end(self) -> str | None:
        """The clause that says, for the black box, why the supervisor ends. Returns None where the supervisor does not know."""
        if self.life.terminal is None:
            return None
        return "the supervisor was told to go" if self.exit_status == GO_ON else f"the run is {self.life.terminal}"

    # -- the guard's tick, and what is in no hurry --------------------------------------------------------------------

    def on_look(self, now_s: float) -> None:
        memory = self.memory_sensor.read(now_s)
        self.night.on_look(memory)
        self.worker.beat(now_s)
        memory = self._make_room(now_s, memory)
        if (leaving_bytes := self.worker.leaving_bytes) > 0:  # it comes back by itself, so the worker pays nothing for it
            memory = without(memory, leaving_bytes)
        stance = self.guard.look(now_s, memory, self.life.view())
        self._perform(now_s, self.life.on_stance(now_s, stance, decided_on=self.guard.ladder.decided_on))
        gone = self.life.stage is Stage.NONE
        again_in_s = self.guard.look_again_in_s(worker_is_gone=gone, at_most_s=self.worker.beat_every_s)
        self.schedule.look_again(now_s, again_in_s)
        if not self.guard.is_at_rest:
            self.schedule.hurry(now_s)

    def on_slow_look(self, now_s: float) -> None:
        at_rest = self.guard.is_at_rest and self.life.is_settled and self.devices.is_cool
        self.schedule.slow_look_again(now_s, calm=at_rest)
        if self.guard.is_calm and self.schedule.is_settling_due(now_s):
            settle()
        newest = None if self.life.saves_elsewhere else self.life.checkpoint  # the next one has to have room here
        self.guard.note_disk(read_disk(now_s, self.paths.state), newest.size_bytes if newest else None)
        self.worker.renew(calm=self.guard.is_calm)

        load = self._load()
        self.guard.proposals = self.devices.step(now_s, load, calm=self.guard.is_calm)
        if any(proposal.leave_card for proposal in self.guard.proposals) and not self.life.stance.leave_card:
            self.schedule.look_soon(now_s)
        self._see_card(now_s)
        if load.alive and self.life.leaving.ending is None and load.place in (None, Place.ON_CARD):
            self.devices.note_held(self.guard.memory, load.memory)
        for sentence in self.devices.take_news():
            self.journal.record(now_s, Record(event=Event.ATTENTION, reason=sentence, by=By.SUPERVISOR))

        if (dropped := self.sockets.garbage_to_tell(now_s)) > 0:
            what = f"{plural(dropped, 'message')} on the sockets made no sense and {'was' if dropped == 1 else 'were'} dropped"
            self.journal.record(now_s, Record(event=Event.GARBAGE, reason=what, by=By.SUPERVISOR))
        self._keep_folders(now_s)
        self.sockets.send(m.Lease(lease_s=LEASE_S))
        if self.worker.is_outlived:
            self._perform(now_s, self.life.on_outlived(now_s, len(self.worker.fence.pids())))

        self._perform(now_s, self.life.on_tick(now_s))
        self._look_at_standby(now_s)
        self._look_at_room(now_s)
        if self.life.clock is not None:
            self._perform(now_s, self.life.on_hours(now_s, clock_of(self.record.settings.hours, unix_s())))
        if self.life.queued is not None:
            self._perform(now_s, self.life.on_awaited(now_s, awaited.look(self.life.queued), unix_s()))
        if (hang := self.night.hangs.step(now_s, self.life, self.worker)) is not None:
            self._perform(now_s, self.life.on_hang(now_s, *hang))

        status = self._status()
        if self.schedule.is_status_due(now_s):
            self._show(now_s, status, durable=False)
        self.journal.record(now_s, *self.night.on_slow_look(now_s, status, self.life, self.guard, self.devices))

    # -- events -------------------------------------------------------------------------------------------------------

    def on_signals(self, now_s: float) -> None:
        for number in self.signals.taken():
            if number in (signal.SIGINT, signal.SIGTERM):
                self._perform(now_s, self.life.on_terminate(now_s, forget=number == signal.SIGINT))
        if self.signals.interrupts > 1:
            self._perform(now_s, self.life.on_request(now_s, NOBODY, RequestKind.STOP_NOW))

    def on_reports(self, now_s: float) -> None:
        was = self.life.worker.attachment
        for report in self.sockets.reports(now_s, self.record.run_id, self.worker.may_speak):
            if isinstance(report, Failed):
                self.devices.note_failed(report)
            self._perform(now_s, self.life.on_report(now_s, report))
        self._take_state(now_s)
        if self.life.worker.attachment is Attachment.ATTACHED and not self.sockets.is_heard:
            self._perform(now_s, self.life.on_let_go(now_s))
        if self.life.worker.attachment is not was:  # whoever finds its process without us is to know that it leaves by itself
            self._show(now_s, self._status(), durable=False)

    def on_requests(self, now_s: float) -> None:
        for token, request in self.sockets.requests(now_s):
            match request.what:
                case RequestKind.STATUS:
                    self._perform(now_s, [Answer(token, True, "")])
                case RequestKind.TAKE_OVER:
                    self._perform(now_s, [self.take_over(now_s, token, request.settings_json)])
                case what:
                    self._see_card(now_s)
                    self._perform(now_s, self.life.on_request(now_s, token, what))

    def take_over(self, now_s: float, token: int, settings_json: bytes) -> Answer:
        """Goes on with other settings, of those that may change; the answer says what came of it, or why nothing did."""
        if self.life.terminal is not None or self.life.worker.leaving.for_good:
            return Answer(token, False, f"The run is {self.life.state} and takes nothing over any more.")
        try:
            settings = decode_settings(settings_json)
            differ = taking_over.changed(self.record.settings, settings)
            asked = msgspec.structs.replace(self.record, settings=settings)
            limits = self._limited(asked, differ) if taking_over.concerns_limits(differ) else self.night.limits
        except (SettingsError, msgspec.DecodeError, UnicodeDecodeError, PathError) as error:
            return Answer(token, False, "\n".join((str(error), *getattr(error, "more", ()))))
        except BlockingIOError:
            return Answer(token, False, "Another run is just starting: give it once more.")
        before_bytes = self.guard.ladder.limits.worker_bytes
        self.record.settings = settings
        self.journal.save_run(self.record)
        self._keep_to(now_s, limits)
        self.life.continue_on_cpu = settings.recovery.continue_on_cpu
        self.life.standby.asked = settings.recovery.standby
        self.life.in_memory.asked = asked_in(settings)
        self.devices.take_over(settings.limits)
        self.journal.record(now_s, *self.night.take_over(now_s, settings, limits))
        if taking_over.concerns_hours(differ):
            self._perform(now_s, self.life.on_hours(now_s, clock_of(settings.hours, unix_s()), given=True))
        has_worker = self.life.stage is not Stage.NONE
        text = taking_over.told(self.paths.name, differ, limits, before_bytes, has_worker=has_worker)
        what = f"{', '.join(sorted(differ))} changed. {text}".strip()
        self.journal.record(now_s, Record(event=Event.SETTINGS, reason=what, by=By.USER))
        self.schedule.look_soon(now_s)
        return Answer(token, True, text)

    def claim_room(self, now_s: float) -> None:
        """Claims what the run may take beside others, whose turn it is now; or tells why there is no room for it."""
        try:
            limits = self._limited(msgspec.structs.replace(self.record, queued=None, not_before=None))
        except BlockingIOError:  # another run is just starting; the next look comes soon
            return
        except (SettingsError, PathError) as error:
            self._perform(now_s, self.life.on_room(now_s, str(error)))
            return
        self._keep_to(now_s, limits)
        self.journal.record(now_s, *self.night.take_over(now_s, self.record.settings, limits), *self.night.shared())
        self._perform(now_s, self.life.on_room(now_s, None))

    def _keep_to(self, now_s: float, limits: Limits) -> None:
        """Has guard and fence keep to other limits of memory."""
        self.guard.ladder.limits = memory_limits(limits)
        self._make_room(now_s, self.guard.memory)
        self.life.memory_limit_bytes = limits.worker_limit_bytes
        self.worker.fence.limit_bytes = limits.fence_bytes
        self.worker.fence.renew()

    def _limited(self, asked: RunRecord, differ: Set[str] = frozenset()) -> Limits:
        """The limits of what is `asked`, claimed beside those of other runs; the settings `differ` were given now. Raises
        `SettingsError`, `PathError`, and BlockingIOError where another run has its turn.
        """
        settings = asked.settings
        machine = look(self.paths.state, self.devices.gpus)
        with contextlib.ExitStack() as turn:
            turn.enter_context(claims.turn(self.paths, waits=False))
            beside = ALONE if asked.queued is not None else claims.beside(self.paths)
            checkpoints, gpu = self._checkpoints(), deciding_gpu(settings, machine)
            if (why := sharing(beside.others, checkpoints)) is not None:
                raise SettingsError(why)
            origins = created_with(settings) | dict.fromkeys(differ, "given now")
            limits = resolve_limits(settings, origins, machine, gpu, beside, is_command=bool(asked.command))
            held_bytes = self.worker.without_prepared(self.guard.memory.worker_bytes) if self.worker.pid else None
            taking_over.check_room(self.paths.name, limits, held_bytes)
            claim = claim_of(asked, limits, on_gpu=self.devices.watches_gpus, checkpoints=checkpoints)
            self.scribe.carry_out(str(self.paths.claim), partial(claims.claim_and_end, self.paths, claim, turn.pop_all()))
        return limits

    def _checkpoints(self) -> str:
        return os.path.realpath(checkpoint_folder(self.paths, self.record))

    def on_card_moved(self, now_s: float, moved: Moved) -> None:
        """Sees what came of having the driver move what a command has on the GPU; what it gave back is measured."""
        is_away = moved.whole is Whole.CHECKPOINTED and self.life.worker.card.place is Place.LEAVING
        given_back = self.devices.card_left(now_s) if is_away else NOTHING_KNOWN
        self._perform(now_s, self.life.on_card_moved(now_s, moved, given_back))

    def on_worker_end(self, now_s: float, woken: Set[int]) -> None:
        """Sees the end of a worker through: its own exit, what it left behind, and a kill that was ordered."""
        state = self.worker.step(now_s, owes_words=self.life.owes_last_words)
        if self.worker.is_being_born:
            self.schedule.look_soon(now_s)
        # Its end stays readable while the rest of the tree is ended, and a closed descriptor would wake the loop for ever.
        pidfd = self.worker.pidfd
        if pidfd is not None and pidfd not in self.poller.get_map() and self.worker.exit_status is None:  # it was just forked
            self.poller.register(pidfd, selectors.EVENT_READ)
        if pidfd is not None and (pidfd in woken or (state is KillState.GONE and pidfd in self.poller.get_map())):
            self.poller.unregister(pidfd)
        if state is KillState.KILLING:
            self.schedule.look_soon(now_s)
        elif state is KillState.GONE:
            self._take_state(now_s)
            self.on_exit(now_s, *self.worker.collect())
        elif self.life.is_of_another and state is None and self.worker.fence.populated() is False:
            self.on_exit(now_s, None)

    def _make_room(self, now_s: float, memory: MemoryReading) -> MemoryReading:
        """Has what is prepared for the next worker go where memory is short, before anything is asked of this one. Returns the
        reading without what came back of that at once.
        """
        is_prepared = self.worker.warmth is not Warmth.NONE or self.life.in_memory.every_s is not None
        if not is_prepared or not self.guard.is_short(memory):
            return memory
        held_bytes = self.worker.state_bytes
        self._perform(now_s, self.life.on_memory_short(now_s))
        return without(memory, held_bytes - self.worker.state_bytes)

    def _look_at_standby(self, now_s: float) -> None:
        """Sees what stands by for the next worker, and whether there is room for it."""
        batch = self.life.heartbeat.batch if self.life.heartbeat else None
        actions = self.life.on_warmth(
            now_s,
            self.worker.warmth,
            use_with=self.guard.use_with(NEEDS_BYTES, batch.peak_bytes if batch else None),
            is_at_rest=self.guard.is_at_rest,
            why_refused=self.worker.why_cold,
            why_dismissed=self.worker.why_dismissed,
        )
        self._perform(now_s, actions)

    def _look_at_room(self, now_s: float) -> None:
        """Sees whether the newest state may be kept in memory, too."""
        needed_bytes, use_with = self.life.state_needs_bytes, None
        if needed_bytes is not None:
            batch, held = self.life.heartbeat.batch if self.life.heartbeat else None, self.life.in_memory.held
            peak_bytes = (batch.peak_bytes if batch and batch.peak_bytes else 0) + (held.size_bytes if held else 0)
            use_with = self.guard.use_with(needed_bytes, peak_bytes)
        at_rest = self.guard.is_at_rest
        self._perform(now_s, self.life.on_room_in_memory(now_s, use_with=use_with, is_at_rest=at_rest))

    def _take_state(self, now_s: float) -> None:
        """Takes the state that the worker has handed over in memory, if there is one."""
        if (note := self.worker.take_state()) is not None:
            self._perform(now_s, self.life.on_kept(now_s, note))

    def on_exit(self, now_s: float, status: int | None, oom_kills: int = 0, rest_status: int = 0) -> None:
        self.sockets.forget_worker()
        self.guard.memory = self.memory_sensor.read(now_s)  # what is said about given back memory is measured
        self._look_at_checkpoints(now_s)  # what it saved and did not live to tell of is known before it is told what is lost
        actions = self.life.on_exit(
            now_s,
            status,
            oom_kills,
            self.devices.lost,
            rest_status=rest_status,
            gpu_crowded=self.devices.crowded,
            given_back=self.devices.worker_gone(now_s, self.guard.memory.worker_bytes, self.worker.prepared_bytes),
            jitter_fraction=random.random(),
        )
        if self.life.on_cpu:
            self.devices.leave_gpus()
        self._perform(now_s, actions)

    # -- actions ------------------------------------------------------------------------------------------------------

    def _perform(self, now_s: float, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Freeze():
                    self.worker.fence.freeze()
                    self.schedule.look_soon(now_s)
                case Thaw(most_growth_bytes=most_growth_bytes):
                    if most_growth_bytes is not None:
                        self.worker.fence.keep_small(most_growth_bytes)
                    self.worker.fence.thaw()
                    self.schedule.look_soon(now_s)
                case MoveCard(pids=pids, to_ram=to_ram):
                    if to_ram:
                        self.devices.card_leaves(now_s, self.life.worker.card.held_bytes)
                    if (moved := self.worker.card.start(pids, to_ram=to_ram)) is not None:
                        self.on_card_moved(now_s, moved)
                case AbandonMove():
                    self.worker.card.abandon()
                case Kill():
                    self.worker.kill(now_s)
                    self.worker.step(now_s)
                    self.schedule.look_soon(now_s)
                case Send(message=message):
                    self.sockets.send(message)
                case Spawn():
                    self._spawn(now_s)
                case WarmUp():
                    with contextlib.suppress(OSError):  # it is seen that there is none
                        self.worker.warm_up()
                case CoolDown():
                    self.worker.cool_down()
                case GiveUpState():
                    self.worker.give_up_state()
                case Terminate():
                    self.worker.terminate()
                case Answer():
                    self.sockets.answer(action, encode_status(self._status()))
                case SaveWish(wanted=wanted, pause_mode=mode):
                    self.record.wanted, self.record.pause_mode = wanted, mode
                    self.journal.save_run(self.record)
                case SaveQueued(queued=queued, not_before=not_before):
                    gives_up = self.record.queued is None and queued is not None
                    self.record.queued = None if queued is None else list(queued)
                    self.record.not_before = not_before
                    self.journal.save_run(self.record)
                    if gives_up:
                        self._claim_again()
                case SaveWaiver(waived_unix_s=waived_unix_s):
                    self.record.waived_unix_s = waived_unix_s
                    self.journal.save_run(self.record)
                case ClaimRoom():
                    self.claim_room(now_s)
                case SaveOffCard(pids=pids):
                    self.record.off_card_pids = list(pids) or None
                    self.journal.save_run(self.record)
                case SaveBudget(budget=budget):
                    self.journal.save_budget(budget)
                case Record():
                    self.journal.record(now_s, action)
                case Quit():
                    self.quitting = True
                    if not self.worker.undead:
                        claims.give_up(self.paths)  # before it is answered: who is told may start another run at once

    def _keep_folders(self, now_s: float) -> None:
        """Makes anew what somebody removed of the run's two folders."""
        if (unbound := self.sockets.keep_reachable()) is not None:
            self.worker.keep_findable()
            self.schedule.hurry(now_s)
            self._show(now_s, self._status(), durable=False)  # whoever took the sockets may have taken the rest along
        if (remade := self.journal.news()) is not None:
            self._claim_again()
        for news in (unbound, remade):
            if news is not None:
                self.journal.record(now_s, Record(event=Event.ATTENTION, reason=news, by=By.SUPERVISOR))

    def _claim_again(self) -> None:
        """Writes down anew what the run may take, which is nothing while it is queued."""
        on_gpu, limits = self.devices.watches_gpus, self.night.limits
        claim = claim_of(self.record, limits, on_gpu=on_gpu, checkpoints=self._checkpoints())
        self.scribe.carry_out(str(self.paths.claim), partial(claims.claim, self.paths, claim))

    def _look_at_checkpoints(self, now_s: float) -> None:
        """Sees what there is to go on from, while nobody is guarded who would have to wait for the disk."""
        if self.life.worker.reports or self.life.checkpoint is not None:
            self._perform(now_s, self.life.on_checkpoints(note_of(newest_checkpoint(self.paths, self.record))))

    def _spawn(self, now_s: float) -> None:
        self._keep_folders(now_s)
        self._look_at_checkpoints(now_s)
        try:
            self.worker.start(now_s)
        except OSError as error:
            why, may_pass = why_not_started(error)
            self._perform(now_s, self.life.on_spawn_failed(now_s, why, may_pass=may_pass))
            return
        if self.worker.pidfd is not None:
            self.poller.register(self.worker.pidfd, selectors.EVENT_READ)
        self.schedule.look_soon(now_s)
        self._perform(now_s, self.life.on_spawned(now_s))

    # -- what others see ----------------------------------------------------------------------------------------------

    def _load(self) -> Load:
        worker = self.life.view()
        return Load(
            alive=worker.alive,
            computing=would_compute(worker, self.life.stance),
            pids=tuple(self.worker.fence.pids()) if worker.alive and self.devices.watches_gpus else (),
            memory=self.life.heartbeat.memory if self.life.heartbeat else None,
            samples_per_s=self.life.progress.samples_per_s if self.life.worker.computes else None,
            ranks=(batch.ranks or ()) if (batch := self.life.heartbeat and self.life.heartbeat.batch) else (),
            place=self.life.worker.card.place if self.life.is_command and not self.life.worker.obeys else None,
        )

    def _see_card(self, now_s: float) -> None:
        """Sees what the worker, with all that it has started by now, has on the GPU, and what room there is for that in RAM."""
        pids = tuple(self.worker.fence.pids()) if self.worker.pid and self.devices.watches_gpus else None
        self.life.on_card_seen(self.devices.card_view(now_s, self.guard.memory, self.guard.ladder.limits, pids))

    def _show(self, now_s: float, status: Status, *, durable: bool) -> None:
        self.schedule.status_shown(now_s)
        self.journal.show(status, durable=durable)

    def _status(self) -> Status:
        death, fence = self.night.death, self.worker.fence
        around = Surroundings(
            now_unix_s=unix_s(),
            since_unix_s=self.journal.since_unix_s,
            pid=os.getpid(),
            worker_pid=self.worker.pid,
            memory=self.guard.memory,
            disk=self.guard.disk,
            limit_bytes=self.guard.ladder.limits.worker_bytes,
            fence_kind=str(fence.kind),
            fence_bytes=fence.limit_bytes,
            fence_reason=fence.why_no_better,
            gpus=self.devices.gpus,
            gpu_note=self.devices.note,
            temperatures=self.devices.temperatures,
            heat=self.devices.heat,
            last_action=self.journal.last_action,
            worst_stall_s=self.schedule.lateness.worst_s,
            recent_stall_s=self.schedule.lateness.recent_s,
            troubles=(*(death.troubles if death else ()), *self.devices.troubles, *self.sockets.troubles),
            own_errors=self.journal.own_errors,
            supervisor_log=str(self.paths.supervisor_log),
            records_lost=self.scribe.lost,
            why_lost=self.scribe.last_error,
            disk_floor_bytes=self.guard.ladder.disk_floor_bytes,
            undead=self.worker.undead,
        )
        return status_of(self.record, self.life, around)
