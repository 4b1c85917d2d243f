"""The supervisor process: startup, main loop, tick, shutdown. Everything that acts is called from here; nothing is decided.

One thread and one poll loop: sockets, the worker's pidfd and signals wake it, otherwise the next look at memory does. What it
sees goes as values into the pure parts (`ladder.py`, `lifecycle.py`), and what they answer is carried out by `_perform`. Disk
writes are `scribe.py`'s. Nothing here blocks: the only wait is the poll.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import zmq

from memsup.shared import messages as m
from memsup.shared.clock import monotonic_s, unix_s
from memsup.shared.endpoints import SocketFolder
from memsup.shared.log import log
from memsup.shared.messages import RequestKind
from memsup.shared.paths import RunPaths
from memsup.shared.record import RunRecord, encode_record
from memsup.shared.status import ActionStatus, RunState, Status, Wanted, encode_status
from memsup.supervisor.daemon.lateness import Lateness
from memsup.supervisor.daemon.sd_notify import Notifier
from memsup.supervisor.daemon.self_protection import protect, settle
from memsup.supervisor.daemon.signals import Signals
from memsup.supervisor.daemon.sockets import Client, Sockets
from memsup.supervisor.daemon.systemd import GO_ON, OVER
from memsup.supervisor.decide.after_power_loss import footing_of
from memsup.supervisor.decide.events import Event
from memsup.supervisor.decide.ladder import HoldReason, Ladder, LadderState, MemoryLimits, Proposal, Rung
from memsup.supervisor.decide.run.actions import (
    Action,
    Answer,
    Freeze,
    Kill,
    Quit,
    Record,
    SaveBudget,
    SaveWish,
    Send,
    Spawn,
    Terminate,
    Thaw,
)
from memsup.supervisor.decide.run.freed import PROOF_WITHIN_S, Held, Proof, held_by
from memsup.supervisor.decide.run.lifecycle import Lifecycle, Stage
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.devices import Cooling, Load
from memsup.supervisor.fence import choose_fence
from memsup.supervisor.fence.kill import Deadman, KillState
from memsup.supervisor.fence.worker import WorkerProcess
from memsup.supervisor.kernel.children import become_subreaper, reap_orphans
from memsup.supervisor.night import Overnight
from memsup.supervisor.record import ledger
from memsup.supervisor.record import status as reporting
from memsup.supervisor.record.earlier_life import newest_checkpoint, note_of, read_budget
from memsup.supervisor.record.scribe import Scribe
from memsup.supervisor.sense.gpu.client import facts
from memsup.supervisor.sense.machine import look
from memsup.supervisor.sense.memory import REST_S, DiskSensor, MemorySensor, poll_interval_s
from memsup.supervisor.words import plural

LEASE_S = 30.0
SLOW_LOOK_S = 1.0
"""Between leases, deadlines, disk readings and what else is in no hurry."""
CALM_LOOK_S = 2.0
"""The same while nothing is in motion: what the supervisor takes of the processor at rest, it takes here."""
LAST_WORDS_WITHIN_S = 0.5
LAST_OUTPUT_WITHIN_S = 1.0
"""For what the worker has printed to be in its log before the supervisor goes."""
GARBAGE_EVERY_S = 60.0
"""Lines of the ledger about it: a flood must not fill the disk."""
STATUS_EVERY_S = 10.0
"""Each new state is written at once; in between the file is for who asks after the supervisor's death."""
GPU_FACTS_S = 5.0
"""For the first look at the GPUs, before the loop runs: waking a driver takes seconds."""
DEADMAN_BEAT_S = 0.5
LEAST_FREE_DISK_BYTES = 64 << 20
ENDING_STEP_S = 0.01
"""Between the steps of a kill, which is when memory is most wanted back."""


class Supervisor:
    def __init__(self, paths: RunPaths, record: RunRecord) -> None:
        """Everything that takes time or can fail, before the worker exists. Raises `PathError`, `SettingsError`, `OSError`."""
        self.paths, self.record = paths, record
        self.notifier = Notifier(os.environ)
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self.scribe = Scribe()
        newest = newest_checkpoint(paths, record)
        self.night = Overnight(paths, record, self.scribe, self.boot, newest)
        device = record.settings.training.device
        gpus, _ = facts(GPU_FACTS_S) if device != "cpu" else ((), None)
        machine = look(paths.state, gpus)
        self.limits = resolve(record.settings, {}, machine).limits
        on_gpu = device.startswith("cuda") or bool(gpus)
        record.gentle = record.gentle or self.night.machine_died
        self.footing = footing_of(record, watches_gpus=on_gpu)
        chosen = choose_fence(record.run_id, self.limits.fence_bytes, device_is_cuda=on_gpu)
        self.fence = chosen.fence
        self.fence_reason = "; ".join(f"{kind}: {why}" for kind, why in chosen.refused)
        self.signals = Signals()
        self.sockets = Sockets(SocketFolder(paths))
        self.cooling = Cooling(
            record.settings.limits,
            watches_gpus=on_gpu,
            vram_fraction=self.limits.vram_fraction,
            power_record=paths.state.parent / ".power-limits.json",
            footing=self.footing,
        )
        self.gpu_fd = self.cooling.client.fileno()
        self.proposals: tuple[Proposal, ...] = ()
        self.deciding: LadderState | None = None
        """While a stance is carried out: what the ladder came to it on."""
        self.held = Held()
        """By the worker, before it was asked to leave or died."""
        self.proof: Proof | None = None
        self.worker = WorkerProcess(paths, record, self.fence, machine.cpus)
        self.memory_sensor, self.disk_sensor = MemorySensor(self.fence), DiskSensor(paths.state)
        self.memory = self.memory_sensor.read(monotonic_s())
        self.disk = self.disk_sensor.read(monotonic_s())
        self.ladder = Ladder(
            MemoryLimits(worker_bytes=self.limits.worker_limit_bytes, reserve_bytes=self.limits.reserve_free_bytes)
        )
        self.life = Lifecycle(
            wanted=record.wanted,
            pause_mode=record.pause_mode,
            run_id=record.run_id,
            lease_s=LEASE_S,
            memory_limit_bytes=self.limits.worker_limit_bytes,
            is_command=record.command is not None,
            continue_on_cpu=record.settings.recovery.continue_on_cpu,
            checkpoint=note_of(newest),
            budget=read_budget(self._budget_file),
            most_micro_tokens=self.footing.most_micro_tokens,
        )
        self.deadman = Deadman(self.fence.name) if self.fence.folder is None else None
        self.speaks_to: bytes | None = None
        """The worker socket's identity of the worker that said Hello in this life."""
        self.clients: dict[int, Client] = {}
        self.next_token = 1
        self.last_action: ActionStatus | None = None
        self.since_unix_s = unix_s()
        self.shown_state = self.life.state
        self.lateness = Lateness()
        self.garbage_told, self.next_garbage_s = 0, 0.0
        self.listens_until_s: float | None = None
        self.quitting = False
        self.interrupts = 0
        self.errors = 0
        """Errors of memsup's own, caught by the loop."""

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
        self.began_s = self.settled_s = monotonic_s()
        self.scribe.start()
        self.poller = zmq.Poller()
        for watched in (self.sockets.worker, self.sockets.control, self.signals.fd, self.gpu_fd):
            self.poller.register(watched, zmq.POLLIN)
        now_s = monotonic_s()
        self.next_look_s = self.next_slow_s = self.next_status_s = self.next_beat_s = now_s
        self.night.begin(now_s)
        self._record_all(now_s, self.night.take_records())
        for protection in protections:
            self._record(
                now_s, Record(event=Event.PROTECTION if protection.holds else Event.NO_PROTECTION, reason=protection.text)
            )
        if self.night.machine_died:
            self.scribe.replace(self.paths.record, encode_record(self.record))
        if self.night.waits is not None:
            self._perform(now_s, self.life.on_machine_died(now_s, self.night.waits))
        self._perform(now_s, self.life.on_start(now_s, leftover=self.fence.populated() is True))
        self.notifier.ready()

    def main_loop(self) -> None:
        planned_s = monotonic_s()
        while not self.quitting:
            due_s = max(planned_s, min(self.next_look_s, self.next_slow_s, self.cooling.due_s(planned_s)))
            wait_s = max(0.0, due_s - monotonic_s())
            woken = dict(self.poller.poll(int(wait_s * 1000) + (wait_s > 0)))
            now_s = monotonic_s()
            self.lateness.note(now_s, now_s - due_s - 0.001)  # the poll's own grain is no lateness
            planned_s = now_s
            try:
                self.on_wake(now_s, woken)
            except Exception:  # a fault of ours must not cost the guard: the next look is what counts
                self.errors += 1
                if self.errors.bit_count() == 1:
                    log.exception("Error in the supervisor itself", number=self.errors)

    def on_wake(self, now_s: float, woken: Mapping[object, int]) -> None:
        if now_s >= self.next_look_s:
            self.on_look(now_s)
        if self.signals.fd in woken:
            self.on_signals(now_s)
        if self.sockets.worker in woken:
            self.on_reports(now_s)
        if self.sockets.control in woken:
            self.on_requests(now_s)
        if self.gpu_fd in woken:
            self.cooling.on_readable(now_s)
        self.cooling.on_tick(now_s)
        self.on_proof(now_s)
        self.on_worker_end(now_s, woken)
        if now_s >= self.next_slow_s:
            self.on_slow_look(now_s)
        self.on_changed(now_s)
        self.notifier.alive(now_s)

    @property
    def _budget_file(self) -> Path:
        return self.paths.state / "restarts.json"

    @property
    def exit_status(self) -> int:
        """What the service manager is to make of the end (`service.py`)."""
        told_to_go = self.life.terminal is RunState.STOPPED and self.record.wanted is not Wanted.STOPPED
        return GO_ON if told_to_go else OVER

    def shutdown(self) -> None:
        now_s = monotonic_s()
        self.notifier.stopping()
        self.worker.kill(now_s)
        while self.worker.step(now_s) is KillState.KILLING:
            time.sleep(ENDING_STEP_S)
            now_s = monotonic_s()
        self.fence.remove()
        self.worker.write_out(LAST_OUTPUT_WITHIN_S)
        self.cooling.close()
        if self.deadman is not None:
            self.deadman.goodbye()
        self._show(now_s, self._status(), durable=True)
        self.night.say_goodbye(now_s, self._status(), self.life.stance.duty_fraction, self.limits.reserve_bytes)
        self._record_all(now_s, self.night.take_records())
        if self.scribe.finish(within_s=5.0):
            self.night.close(monotonic_s(), self._good_end())
        self.sockets.close()
        for name in ("worker.sock", "control.sock"):
            (self.paths.runtime / name).unlink(missing_ok=True)

    # -- events -------------------------------------------------------------------------------------------------------

    def on_signals(self, now_s: float) -> None:
        for number in self.signals.taken():
            if number == signal.SIGINT:
                self.interrupts += 1
            if number in (signal.SIGINT, signal.SIGTERM):
                self._perform(now_s, self.life.on_terminate(now_s, forget=number == signal.SIGINT))
        if self.interrupts > 1:
            self._request(now_s, None, RequestKind.STOP_NOW)

    def on_reports(self, now_s: float) -> None:
        for identity, report in self.sockets.reports():
            if isinstance(report, m.Hello) and report.run_id == self.record.run_id and report.pid == self.worker.pid:
                self.speaks_to = identity
            if identity == self.speaks_to:
                self._perform(now_s, self.life.on_report(now_s, report))

    def on_requests(self, now_s: float) -> None:
        for client, what in self.sockets.requests():
            if what is RequestKind.STATUS:
                document = encode_status(self._status())
                self.sockets.reply(client, m.Reply(request_id=client.request_id, ok=True, text="", status_json=document))
            else:
                self._request(now_s, client, what)

    def on_worker_end(self, now_s: float, woken: Mapping[object, int]) -> None:
        """Sees the end of a worker through: its own exit, what it left behind, and a kill that was ordered."""
        reap_orphans()
        state = self.worker.step(now_s)
        # Its end stays readable while the rest of the tree is ended, and a closed descriptor would wake the loop for ever.
        if self.worker.pidfd in woken or (state is KillState.GONE and self.worker.pidfd in self.poller):
            self.poller.unregister(self.worker.pidfd)
        if state is KillState.KILLING or (state is KillState.GONE and self._may_still_be_heard(now_s)):
            self._look_soon(now_s)
        elif state is KillState.GONE:
            self.listens_until_s = None
            status, oom_kills = self.worker.collect()
            self.speaks_to = None
            self.memory = self.memory_sensor.read(now_s)  # what is said about given back memory is measured
            self.on_exit(now_s, status, oom_kills)
        elif self.life.stage is Stage.LEFTOVER and self.worker.ending is None and self.fence.populated() is False:
            self._perform(now_s, self.life.on_exit(now_s, None, 0))

    def on_exit(self, now_s: float, status: int | None, oom_kills: int) -> None:
        proof = Proof(held=self.held, ram_left_bytes=self.memory.worker_bytes, since_s=now_s)
        self.held = Held()
        given_back = proof.step(now_s, ())
        if given_back is None:
            self.proof = proof
            self.cooling.ask_until(now_s + PROOF_WITHIN_S, now_s)
        actions = self.life.on_exit(
            now_s,
            status,
            oom_kills,
            self.cooling.lost,
            gpu_crowded=self.cooling.crowded,
            given_back=given_back,
            jitter_fraction=random.random(),
        )
        self.cooling.watches_gpus = self.cooling.watches_gpus and not self.life.on_cpu
        self._perform(now_s, actions)

    def on_proof(self, now_s: float) -> None:
        """What came back is said once the device itself says so, or has had its time."""
        given_back = self.proof.step(now_s, self.cooling.client.readings(now_s)) if self.proof is not None else None
        if given_back is not None:
            self.proof = None
            self._perform(now_s, self.life.on_given_back(now_s, given_back))

    def _may_still_be_heard(self, now_s: float) -> bool:
        """Its exit is seen at once, but what it said before comes through a thread of the socket's."""
        if self.worker.exit_status is None or self.worker.exit_status < 0 or not self.life.owes_last_words:
            return False
        self.listens_until_s = self.listens_until_s or now_s + LAST_WORDS_WITHIN_S
        return now_s < self.listens_until_s

    def on_look(self, now_s: float) -> None:
        """The guard's own tick: memory, the ladder, what follows from it, and when to look again."""
        self.memory = self.memory_sensor.read(now_s)
        self.night.on_look(self.memory)
        if self.deadman is not None and now_s >= self.next_beat_s:
            self.next_beat_s = now_s + DEADMAN_BEAT_S
            if not self.deadman.beat():
                self.deadman = Deadman(self.fence.name)
        stance = self.ladder.step(now_s, self.memory, self.disk, self.life.view(), self.proposals)
        self.proposals = tuple(replace(proposal, shrink=False) for proposal in self.proposals)  # asked once
        self.deciding = self.ladder.moment
        self._perform(now_s, self.life.on_stance(now_s, stance))
        self.deciding = None
        self.next_look_s = now_s + self._look_again_in_s()
        if self.ladder.rung is not Rung.GROW:
            self.next_slow_s = min(self.next_slow_s, now_s + SLOW_LOOK_S)

    def on_slow_look(self, now_s: float) -> None:
        self.next_slow_s = now_s + (CALM_LOOK_S if self._is_calm() else SLOW_LOOK_S)
        if now_s >= self.settled_s and self.ladder.rung < Rung.HOLD:  # after 1, 2, 4, 8, … s: more and more has been through
            self.settled_s = now_s + max(SLOW_LOOK_S, now_s - self.began_s)
            settle()
        self.disk = self.disk_sensor.read(now_s)
        self.ladder.disk_floor_bytes = disk_floor_bytes(self.life.checkpoint)
        self.fence.renew()
        load = self._load()
        self.proposals = self.cooling.step(now_s, load, calm=self.ladder.rung < Rung.HOLD)
        if load.alive and self.life.leaving.ending is None:
            self.held = held_by(self.memory, self.cooling.workers, load.memory)
        for sentence in self.cooling.take_news():
            self._record(now_s, Record(event=Event.ATTENTION, reason=sentence))
        if self.sockets.garbage > self.garbage_told and now_s >= self.next_garbage_s:
            self._tell_of_garbage(now_s)
        if self.speaks_to is not None:
            self.sockets.send(self.speaks_to, m.Lease(lease_s=LEASE_S))
        self._perform(now_s, self.life.on_tick(now_s))
        if (hang := self.night.hung(now_s, self.life, self.worker)) is not None:
            self._perform(now_s, self.life.on_hang(now_s, *hang))
        status = self._status()
        if now_s >= self.next_status_s:
            self._show(now_s, status, durable=False)
        self.night.on_slow_look(
            now_s,
            status,
            self.life,
            self.ladder.rung,
            self.limits.reserve_bytes,
            self.cooling.gpus,
            self.cooling.temperatures,
        )
        self._record_all(now_s, self.night.take_records())

    def _tell_of_garbage(self, now_s: float) -> None:
        new = self.sockets.garbage - self.garbage_told
        self.garbage_told, self.next_garbage_s = self.sockets.garbage, now_s + GARBAGE_EVERY_S
        what = f"{plural(new, 'message')} on the sockets made no sense and {'was' if new == 1 else 'were'} dropped"
        self._record(now_s, Record(event=Event.GARBAGE, reason=what))

    def on_changed(self, now_s: float) -> None:
        if self.life.state is not self.shown_state:
            self.shown_state, self.since_unix_s = self.life.state, unix_s()
            self.notifier.tell(f"{self.shown_state}: run {self.paths.name}")
            self._show(now_s, self._status(), durable=True)

    # -- actions ------------------------------------------------------------------------------------------------------

    def _perform(self, now_s: float, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Freeze():
                    self.fence.freeze()
                    self._look_soon(now_s)
                case Thaw():
                    self.fence.thaw()
                    self._look_soon(now_s)
                case Kill():
                    self.worker.kill(now_s)
                    self.worker.step(now_s)
                    self._look_soon(now_s)
                case Send(message=message):
                    if self.speaks_to is not None:
                        self.sockets.send(self.speaks_to, message)
                case Spawn():
                    self._spawn(now_s)
                case Terminate():
                    self.worker.terminate()
                case Answer():
                    self._answer(action)
                case SaveWish(wanted=wanted, pause_mode=mode):
                    self.record.wanted, self.record.pause_mode = wanted, mode
                    self.scribe.replace(self.paths.record, encode_record(self.record))
                case SaveBudget(budget=budget):
                    self.scribe.replace(self._budget_file, msgspec.json.encode(budget))
                case Record():
                    self._record(now_s, action)
                case Quit():
                    self.quitting = True

    def _spawn(self, now_s: float) -> None:
        try:
            self.worker.start()
        except OSError as error:
            self._perform(now_s, self.life.on_spawn_failed(now_s, f"{error.strerror}: {error.filename}"))
            return
        self.poller.register(self.worker.pidfd, zmq.POLLIN)
        self._look_soon(now_s)
        self._perform(now_s, self.life.on_spawned(now_s))

    def _request(self, now_s: float, client: Client | None, what: RequestKind) -> None:
        token, self.next_token = self.next_token, self.next_token + 1
        if client is not None:
            self.clients[token] = client
        self._perform(now_s, self.life.on_request(now_s, token, what))

    def _answer(self, answer: Answer) -> None:
        client = self.clients.pop(answer.token, None)
        if client is not None:
            reply = m.Reply(
                request_id=client.request_id,
                ok=answer.ok,
                text=answer.text,
                status_json=encode_status(self._status()),
                checkpoint_path=answer.checkpoint_path,
                freed_ram_bytes=answer.given_back.ram_bytes if answer.given_back else None,
                freed_vram_bytes=answer.given_back.vram_bytes if answer.given_back else None,
            )
            self.sockets.reply(client, reply)

    def _record_all(self, now_s: float, records: Iterable[Record]) -> None:
        for record in records:
            self._record(now_s, record)

    def _record(self, now_s: float, record: Record) -> None:
        at = unix_s()
        if record.action is not None:
            result = record.result.partition("\n")[0] if record.result else None  # the rest, a traceback, is for the ledger
            self.last_action = ActionStatus(at=at, rung=record.rung, action=record.action, reason=record.reason, result=result)
        line = ledger.line(
            msgspec.structs.replace(record, ladder=self.deciding) if record.rung is not None else record,
            at=at,
            mono=now_s,
            boot=self.boot,
            state=str(self.life.state),
            step=self.life.heartbeat.progress.step if self.life.heartbeat else None,
            memory=self.memory,
            disk=self.disk,
        )
        self.scribe.append(self.paths.ledger, line)
        log.info(f"{record.event}: {' - '.join(filter(None, (record.reason, record.action, record.result)))}", in_ledger=True)

    # -- what others see ----------------------------------------------------------------------------------------------

    def _show(self, now_s: float, status: Status, *, durable: bool) -> None:
        """Flushed only when it says something new."""
        self.next_status_s = now_s + STATUS_EVERY_S
        self.scribe.replace(self.paths.status, encode_status(status), durable=durable)

    def _good_end(self) -> str | None:
        """For the black box: why the supervisor ends; None where it does not know."""
        if self.life.terminal is None:
            return None
        return "the supervisor was told to go" if self.exit_status == GO_ON else f"the run is {self.life.terminal}"

    def _status(self) -> Status:
        around = reporting.Surroundings(
            now_unix_s=unix_s(),
            since_unix_s=self.since_unix_s,
            pid=os.getpid(),
            worker_pid=self.worker.pid,
            memory=self.memory,
            disk=self.disk,
            limit_bytes=self.limits.worker_limit_bytes,
            fence_kind=str(self.fence.kind),
            fence_bytes=self.fence.limit_bytes,
            fence_reason=self.fence_reason,
            gpus=self.cooling.gpus,
            gpu_note=self.cooling.note,
            temperatures=self.cooling.temperatures,
            heat=self.cooling.heat,
            last_action=self.last_action,
            worst_stall_s=self.lateness.worst_s,
            recent_stall_s=self.lateness.recent_s,
            attention=tuple(self._attention()),
        )
        return reporting.status_of(self.record, self.life, around)

    def _load(self) -> Load:
        view = self.life.view()
        return Load(
            alive=view.alive,
            computing=view.alive and not view.frozen and not (view.held and HoldReason.HEAT not in self.life.stance.holds),
            pids=tuple(self.fence.pids()) if view.alive and self.cooling.watches_gpus else (),
            memory=self.life.heartbeat.memory if self.life.heartbeat else None,
        )

    def _attention(self) -> Iterable[str]:
        if self.errors:
            yield f"memsup itself had {self.errors} errors; it goes on. Its log has them: {self.paths.supervisor_log}"
        yield from self.night.attention
        if self.footing.sentence is not None:
            yield self.footing.sentence
        yield from self.cooling.attention
        if self.scribe.lost:
            yield f"{self.scribe.lost} records could not be written ({self.scribe.last_error or 'the disk is too slow'})."
        if self.disk.free_bytes is not None and self.disk.free_bytes < self.ladder.disk_floor_bytes:
            yield f"The disk has only {self.disk.free_bytes / 2**20:.0f} MiB left; make room and training goes on."
        if self.worker.ending is not None and self.worker.ending.state is KillState.UNDEAD:
            yield f"{len(self.worker.ending.left())} processes of the worker cannot be ended; nothing is started beside them."

    def _is_calm(self) -> bool:
        """Nothing is short or warm, nothing was ordered, and nobody waits for anything."""
        return self.ladder.rung is Rung.GROW and self.life.is_settled and self.cooling.is_cool

    def _look_soon(self, now_s: float) -> None:
        """What was just done changes memory: no decision on a reading from before (kubelet#51745)."""
        self.next_look_s = min(self.next_look_s, now_s + ENDING_STEP_S)

    def _look_again_in_s(self) -> float:
        rest_s = DEADMAN_BEAT_S if self.deadman is not None else REST_S
        if self.life.stage is Stage.NONE:  # nothing here could be slowed down or ended, however short memory is
            return rest_s
        return min(rest_s, poll_interval_s(self.ladder.headroom_bytes(self.memory), self.ladder.fill_rate_bytes_per_s()))


def disk_floor_bytes(newest: m.CheckpointNote | None) -> int:
    """Below this much free disk training holds: the room for one more checkpoint, and for the records about it."""
    return LEAST_FREE_DISK_BYTES + ((newest.size_bytes or 0) if newest else 0)
