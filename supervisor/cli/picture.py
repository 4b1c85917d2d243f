"""The status document as a few lines for a terminal. Pure: a `Status` and the time in, lines and rows out.

`status` prints all of it (`picture`), whoever waits for a run draws how far it is (`progress`, and `one_line` where nothing can
be drawn), and `watch.py` makes a screen of the same parts. Nothing is computed that the document does not say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memsup.shared.messages import Phase
from memsup.shared.printable import printable
from memsup.shared.readings import KnownGpu, NodeReading, hottest
from memsup.shared.status import OVER, RunState, Status
from memsup.supervisor.cli.screen import paint
from memsup.supervisor.decide.uses import COLOUR_BELOW_C, HOLD_BELOW_C, HOLD_USE, SHRINK_USE
from memsup.supervisor.words import (
    VERIFIED,
    computing_text,
    count,
    duration,
    ending_line,
    evaluation_text,
    gpu_line,
    percent,
    plural,
    reached,
    reached_text,
    rest_by_hours,
    result_line,
    size,
    trains,
    use_rows,
)

if TYPE_CHECKING:
    from memsup.supervisor.cli.layout import Line

BAR_CELLS = 24
WARN_USE, ALARM_USE = SHRINK_USE, HOLD_USE
"""The parts of its limit from which on the worker's memory is shown in yellow and in red: as the ladder acts."""
_COLOURS = {
    RunState.RUNNING: "green",
    RunState.FINISHED: "green",
    RunState.FAILED: "red",
    RunState.STOPPED: "blue",
}


def picture(status: Status, now_unix_s: float, *, verbose: bool = False) -> list[Line]:
    """Lines and rows with colours in them; whoever prints takes them out where there is no terminal. Where it is `verbose`, it
    says as well what few people ask for.
    """
    lines: list[Line] = [head(status, now_unix_s)]
    lines += attention(status)
    if (drawn := _bar(status)) is not None:
        lines.append(drawn)
    rows = [
        ("waits", waits(status)),
        ("hours", _hours(status)),
        ("progress", speed(status)),
        ("batch", _batch(status)),
        ("ranks", _ranks(status)),
        ("machines", _machines(status)),
        ("computes at", _computing(status) if verbose else None),
        ("memory", _memory(status)),
        *([] if status.state in OVER else _readings(status)),
        ("program", _program(status)),
        ("checkpoint", _checkpoint(status)),
        ("last action", _last_action(status, now_unix_s)),
        ("restarts", count(status.restarts) if status.restarts else None),
        ("evaluation", _evaluation(status)),
        ("result", result_line(status)),
        ("ended", ending_line(status)),
        ("model", printable(status.model_path) if status.model_path else None),
        *use_rows(status),
        ("exit code", None if status.exit_code is None else str(status.exit_code)),
    ]
    return [*lines, *((name, text) for name, text in rows if text)]


def vitals(status: Status, now_unix_s: float) -> list[tuple[str, str]]:
    """What a person who watches the run wants to see all the time, a line each."""
    batch = status.batch
    heat: list[str | None] = [f"GPU {gpu.index} {_celsius(gpu)}" for gpu in status.gpus if gpu.temperature_c is not None]
    now = [
        None if batch.micro_tokens is None else f"{count(batch.micro_tokens)} tokens at a time",
        plural(batch.micro_rows, "row") if batch.micro_rows is not None and trains(status) else None,
        *(heat or [_heat(status)]),
        None if status.memory.ram_available_bytes is None else f"{size(status.memory.ram_available_bytes)} of RAM free",
    ]
    rows = [
        ("waits", waits(status)),
        ("hours", _hours(status)),
        ("now", ", ".join(part for part in now if part) if status.state not in OVER else None),
        ("cooling", _cooling(status)),
        ("checkpoint", _checkpoint(status)),
        ("last action", _last_action(status, now_unix_s)),
        ("evaluation", _evaluation(status)),
        ("result", result_line(status)),
        ("ended", ending_line(status)),
    ]
    return [(name, text) for name, text in rows if text]


def head(status: Status, now_unix_s: float) -> str:
    """The run with its state, and since when that is so."""
    state = paint(status.state, _COLOURS.get(status.state, "yellow"), "bold")
    ago = None if status.since is None else duration(now_unix_s - status.since)
    since = "" if ago is None else f" {ago} ago" if status.state in OVER else f" for {ago}"
    tier = "" if status.tier is None else f", tier {status.tier}"
    return f"{paint(printable(status.run), 'bold')}: {state}{since}{tier}"


def attention(status: Status) -> list[str]:
    """What a person should look at, a sentence a line."""
    colour = "red" if status.state is RunState.FAILED else "yellow"
    return [paint(f"! {printable(sentence)}", colour) for sentence in status.attention]


def progress(status: Status) -> list[Line]:
    """How far the run is, to be drawn again and again while somebody waits for it."""
    state = paint(status.state, _COLOURS.get(status.state, "yellow"))
    memory = None
    if status.memory.worker_bytes is not None and status.worker_pid is not None:
        memory = f"{size(status.memory.worker_bytes)} of {size(status.memory.limit_bytes)}"
    details = ", ".join(part for part in (waits(status), speed(status), memory) if part)
    drawn = _bar(status)
    doing = f"  {state}" + (f": {details}" if details else "")
    lines: list[Line] = [doing] if drawn is None else [drawn, doing]
    return lines


def waits(status: Status) -> str | None:
    """What a run waits for that is queued; `hours` says what it waits for that rests by them."""
    if status.waiting is None or status.state in OVER or (status.state is RunState.PAUSED and rest_by_hours(status)):
        return None
    why = f": {printable(status.waiting.no_room)}" if status.waiting.no_room else ""
    return printable(status.waiting.what_for) + why


def bar(fraction: float, cells: int, colour: str = "green") -> str:
    """A bar of so many cells, of which this part is full."""
    full = round(min(1.0, max(0.0, fraction)) * cells)
    return paint("█" * full, colour) + paint("░" * (cells - full), "dim")


def _readings(status: Status) -> list[tuple[str, str | None]]:
    """What is measured at this moment; of a run that is over nobody measures anything any more."""
    return [
        ("fence", _fence(status)),
        *((f"GPU {gpu.index}", _gpu(gpu)) for gpu in status.gpus),
        ("GPUs", printable(status.gpu_probe) if status.gpu_probe and not status.gpus else None),
        ("heat", _heat(status)),
        ("cooling", _cooling(status)),
    ]


def one_line(status: Status) -> str:
    """The status in one line, for logs and other places without a terminal."""
    state = str(status.state)
    if status.state is RunState.WAITING and status.waiting is not None:
        state = f"{state} {status.waiting.what_for}"
    elif status.state is RunState.PAUSED and (rest := rest_by_hours(status)) is not None:
        state = rest.what
    parts = [state, steps_of(status), speed(status)]
    if status.memory.worker_bytes is not None and status.worker_pid is not None:
        parts.append(f"{size(status.memory.worker_bytes)} of {size(status.memory.limit_bytes)}")
    return ", ".join(part for part in parts if part)


def _bar(status: Status) -> str | None:
    found, total = reached(status), status.progress.total_steps
    if found is None or not total:  # a loop of a program's own, which need not say where it ends
        return f"  {steps_of(status)}" if found is not None and found.step else None
    return f"  {bar(found.step / total, BAR_CELLS)}  {steps_of(status)}"


def steps_of(status: Status) -> str | None:
    found = reached(status)
    return None if found is None else reached_text(found, status.progress.total_steps, over=status.state in OVER)


def speed(status: Status) -> str | None:
    progress, found = status.progress, reached(status)
    has_worker, runs = status.worker_pid is not None, status.state is RunState.RUNNING and trains(status)
    is_of_this_step = found is not None and found.lost_from is None
    says = {Phase.TRAINING, *([Phase.HOLDING] if status.state is RunState.PAUSED else [])}  # what the state says itself
    parts = [
        printable(progress.phase) if has_worker and progress.phase and progress.phase not in says else None,
        f"loss {progress.loss:.4g}" if is_of_this_step and progress.loss is not None else None,
        f"{progress.samples_per_s:.3g} samples/s" if runs and progress.samples_per_s is not None else None,
        f"{duration(progress.eta_s)} left" if runs and progress.eta_s is not None else None,
    ]
    return ", ".join(part for part in parts if part) or None


def _batch(status: Status) -> str | None:
    batch = status.batch
    if batch.effective is None or (status.state in OVER and not status.progress.step):
        return None
    at_once = "" if batch.micro_tokens is None else f", computed {count(batch.micro_tokens)} tokens at a time"
    rows = "" if batch.micro_rows is None or not trains(status) else f" (now {plural(batch.micro_rows, 'row')})"
    samples = plural(batch.effective, "sample")
    # A program of one's own may add up several batches for a step, which only it knows.
    whole = f"{samples} a batch" if status.is_command else f"{samples} a step, always"
    return whole + at_once + rows


def _ranks(status: Status) -> str | None:
    """How several ranks share a step, and which wait for the others."""
    ranks = status.batch.ranks
    if not ranks or status.state in OVER:
        return None
    shares = ", ".join(percent(rank.share) for rank in ranks)
    waiting = [str(number) for number, rank in enumerate(ranks) if rank.waits]
    waits = (
        ""
        if not waiting
        else f"; rank {waiting[0]} waits for the others"
        if len(waiting) == 1
        else "; ranks " + ", ".join(waiting) + " wait for the others"
    )
    return f"{len(ranks)}, with {shares} of a step{waits}"


def _machines(status: Status) -> str | None:
    """The other machines of the run, and what each does."""
    if status.nodes is None or status.state in OVER:
        return None
    return "; ".join(map(_machine, status.nodes)) or "no other one has joined yet"


def _machine(node: NodeReading) -> str:
    first = " (the first, which saves)" if node.is_first else ""
    name = f"{printable(node.name)}{first}"
    if node.silent_s:
        return f"{name} was not heard of for {duration(node.silent_s)}"
    if not node.is_here:
        return f"{name} is waited for"
    does = "rests" if node.holds else "is done, and waits" if node.waits else "computes" if node.rank is not None else "is here"
    share = "" if node.share is None else f", {percent(node.share)} of a step"
    holds = "" if node.resident_bytes is None else f", {size(node.resident_bytes)} held there"
    return f"{name} {does}{share}{holds}"


def _computing(status: Status) -> str:
    """What training makes of this machine's arithmetic."""
    found = status.batch.computing
    if found is None:
        return "not known: no step was looked at yet, or a GPU or another program computes"
    return computing_text(found)


def _memory(status: Status) -> str | None:
    memory = status.memory
    parts = []
    if status.state in OVER:
        return None if memory.limit_bytes is None else f"the limit of the worker was {size(memory.limit_bytes)}"
    if memory.worker_bytes is not None and status.worker_pid is not None:
        used = f"worker {size(memory.worker_bytes)} of at most {size(memory.limit_bytes)}"
        if memory.limit_bytes:
            use = memory.worker_bytes / memory.limit_bytes
            used = paint(f"{used} ({percent(use)})", *danger(use))
        parts.append(used)
    elif memory.limit_bytes is not None:
        gone = "" if status.worker_pid is not None else "no worker now, "
        parts.append(f"{gone}worker at most {size(memory.limit_bytes)}")
    if memory.ram_available_bytes is not None:
        parts.append(f"{size(memory.ram_available_bytes)} of the machine's {size(memory.ram_total_bytes)} are free")
    if memory.pressure is not None and memory.pressure >= 0.01:
        parts.append(f"{percent(memory.pressure)} of the time somebody waits for memory")
    return ", ".join(parts) or None


def danger(use: float) -> tuple[str, ...]:
    """The colour of what takes this part of its limit."""
    return ("red",) if use >= ALARM_USE else ("yellow",) if use >= WARN_USE else ()


def _fence(status: Status) -> str | None:
    memory = status.memory
    if memory.fence is None:
        return None
    if memory.fence == "none":
        return paint("none: the kernel enforces nothing here", "yellow")
    return f"{printable(memory.fence)}, the kernel stops the worker at {size(memory.fence_bytes)}"


def _gpu(gpu: KnownGpu) -> str:
    return gpu_line(gpu, lambda celsius: paint(celsius, *_heat_colour(gpu)))


def _celsius(gpu: KnownGpu) -> str:
    return paint(f"{gpu.temperature_c:g} °C", *_heat_colour(gpu))


def _heat_colour(gpu: KnownGpu) -> tuple[str, ...]:
    """By how far the GPU is from where it slows itself down."""
    if gpu.temperature_c is None or gpu.slowdown_c is None or gpu.temperature_c < gpu.slowdown_c - COLOUR_BELOW_C:
        return ()
    return ("red",) if gpu.temperature_c >= gpu.slowdown_c - HOLD_BELOW_C else ("yellow",)


def _heat(status: Status) -> str | None:
    """The hottest sensor with its limit; `--json` has them all."""
    sensor = hottest(status.temperatures)
    if sensor is None:
        return None
    limit = "" if sensor.limit_c is None else f" (its limit is {sensor.limit_c:g})"
    return f"{printable(sensor.name)} {sensor.celsius:g} °C{limit}"


def _cooling(status: Status) -> str | None:
    cooling = status.cooling
    if cooling is None:
        return None
    what = "goes on in about" if cooling.holding else "has to rest in about"
    ahead = "" if cooling.forecast_s is None else f"; {what} {duration(cooling.forecast_s)}"
    return paint(printable(cooling.reason), "yellow") + ahead


def _checkpoint(status: Status) -> str | None:
    checkpoint = status.checkpoint
    if checkpoint.step is None:
        if status.program is not None and status.program.attached:
            return "none yet"
        if status.batch.effective is None:  # another program's checkpoints are its own affair
            return None
        return "none" if status.state in OVER else "none yet"
    age = "" if checkpoint.age_s is None else f", {duration(checkpoint.age_s)} old"
    newer = "" if checkpoint.memory_step is None else f"; step {count(checkpoint.memory_step)} is kept in memory"
    taken = "" if not newer or checkpoint.memory_bytes is None else f" ({size(checkpoint.memory_bytes)})"
    return f"step {count(checkpoint.step)}{age}, {VERIFIED[checkpoint.verified]}{newer}{taken}"


def _program(status: Status) -> str | None:
    """What holds for a command of the user's own, and what does not."""
    program = status.program
    if program is None:
        return None
    return printable("; ".join([program.what, *program.lacks]))


def _hours(status: Status) -> str | None:
    return None if status.hours is None or status.state in OVER else printable(status.hours.what)


def _evaluation(status: Status) -> str | None:
    """What evaluations have found so far; of a finished run its result says that."""
    return None if status.evaluation is None or status.state is RunState.FINISHED else evaluation_text(status.evaluation)


def _last_action(status: Status, now_unix_s: float) -> str | None:
    action = status.last_action
    if action is None:
        return None
    result = f" → {action.result}" if action.result else ""
    return printable(f"{duration(now_unix_s - action.at)} ago: {action.action} ({action.reason.rstrip('.')}){result}")
