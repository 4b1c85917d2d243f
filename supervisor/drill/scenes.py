"""What a drill rehearses, scene by scene, each on a run of its own.

A scene yields one sentence for each thing that it proved, in the order of its names in `SCENES`; a `NotProvedError` or a
`NotRehearsedError` belongs to the next name. Whatever is done to the run is done from outside, as a bad night does it: the
supervisor and the worker are the real ones, and neither knows that this is a drill.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from memsup.shared.messages import RequestKind
from memsup.shared.settings import Limits
from memsup.shared.status import RunState
from memsup.supervisor.decide.events import Event, OrderKind, Outcome
from memsup.supervisor.decide.ladder import DISK_CALM_S, MEMORY_STEPS, Rung
from memsup.supervisor.decide.run.restarts import Cause
from memsup.supervisor.drill import balloon as balloon_program
from memsup.supervisor.drill.private_mounts import leave_the_common_view, mount_small_disk
from memsup.supervisor.drill.toy import EFFECTIVE_BATCH, NotProvedError, NotRehearsedError, Room, Toy
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.words import duration, size

MIB = 1 << 20

# --------------------------------------------------------------------------------------------------------------------
# Memory

WORKER_LIMIT_BYTES = 1024 * MIB
SQUEEZED, ALMOST = 0.92, 0.86
"""The parts of the worker's limit at which the ladder shrinks the micro-batch, and is just about to."""
SLOWLY_BYTES_PER_S, AT_ONCE_BYTES_PER_S, RUNAWAY_BYTES_PER_S = 40 * MIB, 4096 * MIB, 300 * MIB


def memory(room: Room) -> Iterator[str]:
    spare_bytes = room.machine.ram_available_bytes
    if spare_bytes is not None and spare_bytes < 2 * WORKER_LIMIT_BYTES:
        raise NotRehearsedError(f"It takes {size(2 * WORKER_LIMIT_BYTES)} of free memory, and {size(spare_bytes)} are there.")
    toy = Toy(room, "memory", limits=Limits(ram=WORKER_LIMIT_BYTES))
    balloon = _with_balloon(room, toy)
    toy.begin()
    try:
        yield _squeeze(toy, balloon)
        yield _runaway(toy, balloon)
    finally:
        toy.end()


def _with_balloon(room: Room, toy: Toy) -> Path:
    """Makes every worker of `toy` begin with `balloon.py` beside it; returns the file that tells it what to hold.

    Python itself runs a module called `sitecustomize` wherever it finds one, so the worker need not know.
    """
    folder, told = room.folder / "python", room.folder / "balloon"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"""import sys
if "memsup.worker" in sys.orig_argv and {toy.paths.name!r} in sys.orig_argv:
    import subprocess
    subprocess.Popen([sys.executable, "-I", "-S", {balloon_program.__file__!r}, {str(told)!r}], stdin=subprocess.DEVNULL)
""",
        encoding="utf-8",
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return told


def _inflate(balloon: Path, held_bytes: float, bytes_per_s: int) -> None:
    beside = balloon.with_name("balloon.new")
    beside.write_text(f"{held_bytes:.0f} {bytes_per_s}", encoding="ascii")
    beside.rename(balloon)


def _squeeze(toy: Toy, balloon: Path) -> str:
    before = toy.trains(beyond_step=20)
    at_rest, tokens = before.memory.worker_bytes, before.batch.micro_tokens
    if at_rest is None or tokens is None:
        raise NotProvedError("What the worker uses cannot be read.")
    if at_rest > 0.7 * WORKER_LIMIT_BYTES:
        raise NotRehearsedError(f"Even the toy takes {size(at_rest)} of its {size(WORKER_LIMIT_BYTES)} here.")
    _inflate(balloon, ALMOST * WORKER_LIMIT_BYTES - at_rest, AT_ONCE_BYTES_PER_S)
    toy.until_status("the squeeze", lambda seen: (seen.memory.worker_bytes or 0) > 0.84 * WORKER_LIMIT_BYTES, 20)
    _inflate(balloon, SQUEEZED * WORKER_LIMIT_BYTES - at_rest, SLOWLY_BYTES_PER_S)
    line, shrunk = toy.until_entry("an order to halve the micro-batch", lambda entry: is_done(entry, OrderKind.HALVE), 30)
    up = next(entry for entry in reversed(toy.ledger()[:line]) if entry.rung == "shrink")
    _inflate(balloon, 0, AT_ONCE_BYTES_PER_S)
    smaller = toy.until_status("a smaller micro-batch", lambda seen: (seen.batch.micro_tokens or tokens) < tokens, 10)
    calm_s = sum(step.calm_s for step in MEMORY_STEPS if step.rung < Rung.HOLD)
    _, grown = toy.until_entry("the order to grow", lambda entry: is_done(entry, OrderKind.GROW), calm_s + 30, after=line)
    back = toy.until_status("the micro-batch that it had", lambda seen: (seen.batch.micro_tokens or 0) >= tokens, 30)
    if back.batch.effective != EFFECTIVE_BATCH:
        raise NotProvedError(f"The effective batch became {back.batch.effective}; it was {EFFECTIVE_BATCH}.")
    return (
        f"{up.reason}: micro-batch {tokens} → {smaller.batch.micro_tokens} tokens within {shrunk.mono - up.mono:.2f} s, "
        f"back at {back.batch.micro_tokens} after {duration(grown.mono - shrunk.mono)}; effective batch {EFFECTIVE_BATCH} "
        "all the time."
    )


def is_done(entry: Entry, order: OrderKind) -> bool:
    """Whether the entry says that the worker has carried out an order of that kind."""
    return entry.order is order and entry.outcome is Outcome.DONE


def _runaway(toy: Toy, balloon: Path) -> str:
    before, fence = len(toy.ledger()), toy.trains().memory.fence
    _inflate(balloon, 4 * WORKER_LIMIT_BYTES, RUNAWAY_BYTES_PER_S)
    _, died = toy.until_entry("the end of a worker that takes 300 MiB a second", _is_death, 30, before)
    _, again = toy.until_entry("training again", lambda entry: entry.event is Event.RECOVERED, 120, before)
    story = toy.ledger()[before:]
    if died.cause is not Cause.MEMORY:
        raise NotProvedError(f"It died of something else: {died.reason}")
    most_bytes = max((entry.memory.worker_bytes or 0 for entry in story if entry.memory is not None), default=0)
    if most_bytes > WORKER_LIMIT_BYTES:
        raise NotProvedError(f"It reached {size(most_bytes)}, and its limit is {size(WORKER_LIMIT_BYTES)}.")
    frozen = next((entry for entry in story if entry.event is Event.FREEZE), None)
    killed = next((entry for entry in story if entry.event is Event.KILL), None)
    if frozen is None or killed is None:
        how = "the kernel ended it at the fence, before it had to be frozen"
    else:
        how = f"frozen, then killed as a whole {killed.mono - frozen.mono:.1f} s later"
    smaller = next((f", {entry.action}" for entry in story if entry.event is Event.SMALLER), "")
    return (
        f"300 MiB a second in a fence of kind {fence}: {how}, at most {size(most_bytes)} of its {size(WORKER_LIMIT_BYTES)}; "
        f"training again {duration(again.mono - died.mono)} after its death{smaller}."
    )


def _is_death(entry: Entry) -> bool:
    return entry.event is Event.DEATH


# --------------------------------------------------------------------------------------------------------------------
# Kills

EPOCHS = 60
ENDS_WITHIN_S = 300.0


def kills(room: Room) -> Iterator[str]:
    toy = Toy(room, "killed", epochs=EPOCHS)
    toy.begin()
    try:
        yield _kill_worker(toy)
        yield _kill_supervisor(toy)
        _finish(toy)
        killed = toy.bits()
    finally:
        toy.end()
    undisturbed = Toy(room, "undisturbed", epochs=EPOCHS)
    undisturbed.begin()
    try:
        _finish(undisturbed)
        left_alone = undisturbed.bits()
    finally:
        undisturbed.end()
    if killed != left_alone:
        raise NotProvedError(f"The killed run ended otherwise than one that was left alone: {killed} and {left_alone}.")
    yield (
        f"after {left_alone[0]:,} steps every byte of weights and optimizer state is that of a run that was left alone "
        f"(SHA-256 {left_alone[1][:16]}…)."
    )


def _kill_worker(toy: Toy) -> str:
    seen = toy.trains(beyond_step=50)
    before = len(toy.ledger())
    toy.kill(seen.worker_pid)
    _, died = toy.until_entry("its death in the ledger", _is_death, 30, before)
    _, again = toy.until_entry("training again", lambda entry: entry.event is Event.RECOVERED, 120, before)
    if died.cause is not Cause.KILLED or died.exit_status != -signal.SIGKILL:
        raise NotProvedError(f"The ledger says: {died.reason} ({died.result})")
    waited = duration(again.mono - died.mono)
    return f"kill -9 at step {seen.progress.step:,}: {died.reason} {waited} later: {again.reason}."


def _kill_supervisor(toy: Toy) -> str:
    seen = toy.trains(beyond_step=100)
    toy.kill(seen.pid)
    toy.until_gone("the worker leaving by itself", seen.worker_pid, 60)
    saved_step, _ = toy.bits()
    if saved_step < (seen.progress.step or 0):
        raise NotProvedError(f"Its worker had reached step {seen.progress.step:,} and saved step {saved_step:,}.")
    told = toy.begin_again()
    now = toy.trains(beyond_step=saved_step)
    if now.pid == seen.pid or not told:
        raise NotProvedError("The next start does not know that the supervisor was killed.")
    return (
        f"kill -9 at step {seen.progress.step:,}: its worker saved step {saved_step:,} and left. The next start says: {told[0]}"
    )


def _finish(toy: Toy) -> None:
    toy.until_status("the end of the run", lambda seen: seen.state is RunState.FINISHED, ENDS_WITHIN_S)


# --------------------------------------------------------------------------------------------------------------------
# Heat

COOL_C, WARM_C, HOT_C, CRITICAL_C = 60, 99, 106, 100


def heat(room: Room) -> Iterator[str]:
    _own_view("A simulated sensor")
    sensor = simulated_sensor()
    toy = Toy(room, "heat")
    toy.begin()
    try:
        toy.trains(beyond_step=20)
        _read_as(sensor, WARM_C)
        _, paced = toy.until_entry("gaps between micro-batches", lambda entry: is_done(entry, OrderKind.PACE), 60)
        _read_as(sensor, HOT_C)
        toy.until_status("a hold", lambda seen: seen.state is RunState.COOLING, 30)
        line, held = toy.until_entry("the worker holding", lambda entry: is_done(entry, OrderKind.HOLD), 30)
        _read_as(sensor, COOL_C)
        _, resumed = toy.until_entry("going on", lambda entry: is_done(entry, OrderKind.RESUME), 120, after=line)
        toy.trains(beyond_step=held.step or 0)
    finally:
        toy.end()
    yield (
        f"a simulated sensor at {WARM_C} °C: {paced.action}; at {HOT_C} °C: held; at {COOL_C} °C again: going on after "
        f"{duration(resumed.mono - held.mono)}."
    )


def _own_view(what: str) -> None:
    try:
        leave_the_common_view()
    except OSError as error:
        why = f"{what} has to be mounted for it, and this system does not let you ({error.strerror})."
        raise NotRehearsedError(why) from None


def simulated_sensor() -> Path:
    """A processor's sensor as the kernel shows it, over /sys/class, for the processes of this scene alone."""
    try:
        mount_small_disk(Path("/sys/class"), MIB)
    except OSError as error:
        raise NotRehearsedError(f"No simulated sensor can be put in the place of the real ones ({error.strerror}).") from None
    chip = Path("/sys/class/hwmon/hwmon0")
    chip.mkdir(parents=True)
    for name, text in {"name": "coretemp", "temp1_label": "Package id 0", "temp1_crit": f"{CRITICAL_C}000"}.items():
        (chip / name).write_text(text + "\n", encoding="ascii")
    _read_as(chip / "temp1_input", COOL_C)
    return chip / "temp1_input"


def _read_as(sensor: Path, celsius: int) -> None:
    sensor.write_text(f"{celsius}000\n", encoding="ascii")


# --------------------------------------------------------------------------------------------------------------------
# Disk

DISK_BYTES, LEFT_BYTES = 128 * MIB, 8 * MIB


def disk(room: Room) -> Iterator[str]:
    _own_view("A small file system")
    toy = Toy(room, "disk")
    small = toy.paths.state.parent
    small.mkdir(parents=True)
    try:
        mount_small_disk(small, DISK_BYTES)
    except OSError as error:
        raise NotRehearsedError(f"No small file system can be mounted here ({error.strerror}).") from None
    toy.begin()
    try:
        toy.trains(beyond_step=20)
        ballast = small / "ballast"
        found = os.statvfs(small)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - LEFT_BYTES)
        held = toy.until_status("a hold", lambda seen: seen.state is RunState.RECOVERING, 30)
        toy.until_entry("the worker holding", lambda entry: is_done(entry, OrderKind.HOLD), 30)
        saved = toy.ask(RequestKind.CHECKPOINT, within_s=30)
        step, _ = toy.bits()
        ballast.unlink()
        toy.trains(beyond_step=held.progress.step or 0, within_s=DISK_CALM_S + 60)
    finally:
        toy.end()
    refused = "was written all the same" if saved.ok else "was refused"
    yield (
        f"with {size(LEFT_BYTES)} left of {size(DISK_BYTES)} it holds at step {held.progress.step:,}, a checkpoint {refused}, "
        f"that of step {step:,} is whole, and training goes on when there is room."
    )


# --------------------------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    names: tuple[str, ...]
    play: Callable[[Room], Iterator[str]]


SCENES = (
    Scene(("squeeze", "runaway"), memory),
    Scene(("worker killed", "supervisor killed", "same bits"), kills),
    Scene(("heat",), heat),
    Scene(("full disk",), disk),
)
