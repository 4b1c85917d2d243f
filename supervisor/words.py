"""Numbers as people read them, and text in columns. Pure.

Sentences are written where they are used, in English; figures, units and widths come from here, so that they look the same
everywhere. Widths count in terminal cells: a run or a path may have a Chinese name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from memsup.shared.commands import command
from memsup.shared.printable import printable

if TYPE_CHECKING:
    from memsup.shared.readings import Computing, Evaluation, KnownGpu
    from memsup.shared.status import HoursStatus, Status

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def size(size_bytes: float | None) -> str:
    """A number of bytes as `512 MiB` or `23.5 GiB`: three digits tell enough. None is a question mark, never nought."""
    if size_bytes is None:
        return "?"
    if abs(size_bytes) < 1024:
        return f"{size_bytes:.0f} B"
    for unit in _UNITS:
        size_bytes /= 1024
        if abs(size_bytes) < 999.5 or unit == _UNITS[-1]:
            break
    decimals = 2 if abs(size_bytes) < 9.995 else 1 if abs(size_bytes) < 99.95 else 0
    text = f"{size_bytes:,.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if decimals else text} {unit}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units: `8 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`. None is a question mark."""
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    for unit_s, unit, smaller_s, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            rest = whole % unit_s // smaller_s
            return f"{whole // unit_s} {unit} {rest} {smaller}" if rest else f"{whole // unit_s} {unit}"
    return f"{whole} s"


def percent(fraction: float | None) -> str:
    """A part of a whole in per cent; a little is not nothing: `under 1 %`."""
    if fraction is None:
        return "?"
    return "under 1 %" if 0 < fraction < 0.01 else f"{100 * fraction:.0f} %"


def computing_text(computing: Computing) -> str:
    """At which share of the machine's peak a step was computed, and what took the rest of its time, the most first."""
    parts = {
        "padding": computing.padding,
        "attention": computing.attention,
        "the optimizer": computing.optimizer,
        "loading": computing.loading,
        "waiting": computing.waiting,
        "starting operations": computing.starting or 0.0,
    }
    parts["all other operations"] = max(0.0, 1 - computing.useful - sum(parts.values()))
    most_first = sorted((part for part in parts.items() if part[1] >= 0.005), key=lambda part: -part[1])
    rest = ", ".join(f"{name} {percent(fraction)}" for name, fraction in most_first)
    peak = f"{percent(computing.useful)} of the peak, which is {computing.peak_per_s / 1e9:.3g} billion operations a second"
    return f"{peak}; the rest is {rest} (step {count(computing.step)})" if rest else f"{peak} (step {count(computing.step)})"


def share_right(fraction: float | None) -> str:
    """An accuracy: `93.1 %`, since runs differ by tenths. None is a question mark."""
    return "?" if fraction is None else f"{100 * fraction:.1f} %"


def count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `1 row`, `2 rows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def width(text: str) -> int:
    """The terminal cells that `text` takes: two for wide and full-width characters, none for combining marks (UAX #11)."""
    if text.isascii():
        return len(text)
    import unicodedata

    cells = 0
    for character in text:
        if not unicodedata.combining(character):
            cells += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return cells


def cut(text: str, cells: int) -> str:
    """`text` in one line, cut to so many cells."""
    text = " ".join(text.split())
    if width(text) <= cells:
        return text
    kept = text[: cells - 1]
    while width(kept) > cells - 1:
        kept = kept[:-1]
    return f"{kept}…"


def pad(text: str, cells: int) -> str:
    return text + " " * max(0, cells - width(text))


def columns(rows: Iterable[Sequence[str]], gap: str = "  ") -> list[str]:
    """The rows as lines with left-aligned columns, the last of which runs free."""
    table = [list(row) for row in rows]
    widths = [max((width(row[i]) for row in table if i < len(row)), default=0) for i in range(max(map(len, table), default=0))]
    return [gap.join([*(pad(cell, widths[i]) for i, cell in enumerate(row[:-1])), row[-1]]).rstrip() for row in table if row]


def steps(step: int, total: int | None) -> str:
    """How far a run is: `step 40 of 96 (42 %)`. A `total` of None is not known."""
    return f"step {count(step)}" + (f" of {count(total)} ({percent(step / total)})" if total else "")


class Reached(NamedTuple):
    """How far a run is, and how far it was before it lost steps again."""

    step: int
    """What is computed next comes after this step."""
    lost_from: int | None
    """The step that had been reached, where the newest checkpoint holds less. It is None where nothing has to be done again."""


def reached(status: Status) -> Reached | None:
    """Where the run stands: with a worker that trains, at its step; without one, at what its newest checkpoint holds, or what
    is kept in memory. None where no step is known.
    """
    step, kept = status.progress.step, max(status.checkpoint.step or 0, status.checkpoint.memory_step or 0)
    if step is None:
        return None
    if kept >= step or status.state == "finished" or trains(status):
        return Reached(step, None)
    return Reached(kept, step)


def trains(status: Status) -> bool:
    """Whether there is a worker that has loaded its model, and so what is said of progress is its own."""
    loaded = status.worker_pid is not None and status.progress.phase not in {None, "starting", "loading"}
    return loaded or status.state == "running"


def reached_text(found: Reached, total: int | None, *, over: bool) -> str:
    """`step 169 of 382 (44 %)`, and what became of the steps beyond it, if there were any. `over`: the run does not go on."""
    lost = "" if found.lost_from is None else f"step {count(found.lost_from)}"
    tail = "" if not lost else f"; {lost} was reached, and not saved" if over else f", going back from {lost}"
    return steps(found.step, total) + tail


def gpu_line(gpu: KnownGpu, paint: Callable[[str], str] = str) -> str:
    """A GPU with its memory, temperature and power, as far as they are known. `paint` may colour the temperature."""
    heat = "" if gpu.temperature_c is None else f", {paint(f'{gpu.temperature_c:g} °C')}"
    slowdown = "" if not heat or gpu.slowdown_c is None else f" (slows itself down at {gpu.slowdown_c:g})"
    power = "" if gpu.power_w is None else f", {gpu.power_w:.0f} W"
    return f"{printable(gpu.name or 'a GPU')}, {size(gpu.used_bytes)} of {size(gpu.total_bytes)} used{heat}{slowdown}{power}"


VERIFIED = {True: "verified", False: "to be verified when it is loaded", None: "not known whether verified"}
"""What is said of a checkpoint, by whether every byte of it was compared with its manifest since it was written."""


_OF_WORDS = {"spans", "words"}
"""What only the result of a model that tags words counts."""


def use_rows(status: Status) -> list[tuple[str, str]]:
    """How the model of a finished run is used, in two rows. There is none of any other run; what a command has made is its own
    affair.
    """
    if status.model_path is None or status.state != "finished" or status.is_command:
        return []
    if not status.model_path.startswith("/"):  # it lies on the first of several machines
        return []
    ask = command("predict", status.run)
    metrics = dict(status.result or {})
    if "perplexity" in metrics:
        return [
            ("use it", f'{ask} "a question"'),
            ("answers", f"before and after, to compare: {command('report', status.run)}"),
            ("in Python", f'transformers.pipeline("text-generation", model={status.model_path!r})'),
        ]
    python = f'transformers.pipeline("text-classification", model={status.model_path!r})'
    if not _OF_WORDS.isdisjoint(metrics):
        python = f'transformers.pipeline("token-classification", model={status.model_path!r}, aggregation_strategy="first")'
    return [("use it", f'{ask} "a text"   or a file: {ask} FILE.csv --output labels.csv'), ("in Python", python)]


def finished_lines(status: Status, that: str = "Finished") -> list[str | tuple[str, str]]:
    """What is said of a run that has finished, `that` first: the result, why it ended early if it did, where the model is and
    how it is used.
    """
    result, ending = result_line(status), ending_line(status)
    lines: list[str | tuple[str, str]] = [f"{that}: {result}" if result else f"{that}."]
    if ending:
        lines.append(f"{ending[0].upper()}{ending[1:]}.")
    if status.model_path:
        lines += [f"Model: {status.model_path}", *use_rows(status)]
    return lines


def evaluation_text(found: Evaluation) -> str:
    """What the last evaluation found, and how that is beside the best: `accuracy 79.0 % at step 400; best 81.0 % at step 320,
    1 of 3 evaluations without a better one`.
    """
    text = f"{printable(found.metric)} {measured(found.metric, found.value)} at step {count(found.step)}"
    if not found.without_rise or found.best_step is None:
        return text
    of = "" if found.patience is None else f" of {found.patience:,}"
    since = plural(found.without_rise, "evaluation") if not of else f"{found.without_rise:,}{of} evaluations"
    return f"{text}; best {measured(found.metric, found.best)} at step {count(found.best_step)}, {since} without a better one"


def stopped_early_text(found: Evaluation, model_step: int | None) -> str:
    """Why a training ended before its last step, and which weights its model has."""
    moved = "fallen" if found.metric == "loss" else "risen"
    why = f"stopped early: {printable(found.metric)} has not {moved} for {plural(found.without_rise, 'evaluation')}"
    if found.best_step is None:
        return why
    best = f"best {measured(found.metric, found.best)} at step {count(found.best_step)}"
    if model_step == found.best_step:
        return f"{why}; {best}, whose weights the model has"
    return f"{why}; {best}, while the model has the weights of step {count(model_step)}, the last one"


def ending_line(status: Status) -> str | None:
    """Why a finished run ended early, or why its model is not that of the last step. None where neither is so."""
    found = status.evaluation
    if status.state != "finished" or found is None:
        return None
    if status.stopped_early:
        return stopped_early_text(found, status.model_step)
    if status.model_step != found.step and status.model_step == found.best_step:
        return f"the model has the weights of step {count(found.best_step)}, with the best {printable(found.metric)}"
    return None


def measured(metric: str, value: float | None) -> str:
    """What a metric came to: an accuracy in per cent, any other one as a number. None is a question mark."""
    return "?" if value is None else share_right(value) if metric == "accuracy" else f"{value:.4g}"


def rest_by_hours(status: Status) -> HoursStatus | None:
    """The hours outside of which a run rests. Returns None where it does not, or a person wants it paused anyway."""
    rests = status.hours is not None and status.hours.rests and status.wanted == "running"
    return status.hours if rests else None


def learnt(result: Mapping[str, float]) -> dict[str, float]:
    """What a result says of the model: a Trainer's also has how long it took, and how far it came. Where there is nothing else
    these are all.
    """
    found = {name: value for name, value in result.items() if not name.endswith(("_runtime", "_per_second", "_flos", "epoch"))}
    return found or dict(result)


def result_line(status: Status) -> str | None:
    """The metrics of a finished run, with the accuracy beside what guessing the most frequent label would reach, without which
    it says little. Returns None for any other run.
    """
    if not status.result:
        return None
    metrics = learnt(status.result)
    left_out = metrics.pop("left_out_rows", None)
    parts = []
    if (accuracy := metrics.pop("accuracy", None)) is not None:
        majority = metrics.pop("majority_accuracy", None)
        beside = [] if majority is None else [f"always the most frequent label: {share_right(majority)}"]
        if (shared := metrics.pop("shared_rows", None)) is not None:
            of = f" of {int(metrics['rows']):,}" if "rows" in metrics else ""
            beside.append(f"{int(shared):,}{of} texts are trained on too")
        parts.append(f"accuracy {share_right(accuracy)}" + (f" ({'; '.join(beside)})" if beside else ""))
    parts += [f"{printable(name).replace('_', ' ')} {value:.4g}" for name, value in metrics.items()]
    if left_out is not None:
        parts.append(f"{plural(int(left_out), 'row')} of the data left out")
    return ", ".join(parts)
