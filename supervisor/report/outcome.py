"""The report in sentences and figures: what came of the run, what it cost, what is to be known. Pure; for page and terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from memsup.shared.status import RunState, Status, Wanted
from memsup.supervisor.record.history import Activity
from memsup.supervisor.report.account import Account
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.interventions import Kind
from memsup.supervisor.report.marks import clock
from memsup.supervisor.words import count, duration, percent, plural, result_line, size


@dataclass(frozen=True)
class Figure:
    """A figure is one tile of the page: a number and what it is."""

    value: str
    meaning: str


def headline(material: Material, account: Account) -> tuple[str, str]:
    """The outcome in a few words, and its tone: good, warn, bad or nothing."""
    status = material.status
    if status is None:
        return "Nothing is known of this run", "warn"
    lasted = duration(account.end - account.begin)
    match status.state:
        case RunState.FINISHED:
            return f"Finished after {lasted}", "good"
        case RunState.FAILED:
            return f"Failed after {lasted}", "bad"
        case RunState.STOPPED if status.attention:
            return f"Broken off after {lasted}", "bad"
        case RunState.STOPPED:
            return f"Stopped after {lasted}", ""
        case state:
            return f"{str(state).capitalize()}, since {lasted} ago", "warn" if status.attention else "good"


def summary(material: Material, account: Account) -> str:
    """One paragraph, the answer to "how was the night?"."""
    status = material.status or Status(run=material.run, state=RunState.STOPPED, wanted=Wanted.STOPPED)
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in (result_line(status),) if sentence]
    step, total = status.progress.step, status.progress.total_steps
    if step is not None and status.state is not RunState.FINISHED:
        sentences.append(f"It is at step {count(step)}" + (f" of {count(total)}." if total else "."))
    unasked = [i for i in account.interventions if not i.asked]
    if unasked:
        known = sum(i.cost_s or 0.0 for i in unasked)
        unknown = sum(i.cost_s is None and i.kind in (Kind.DEATH, Kind.MACHINE) for i in unasked)
        more = f", and {plural(unknown, 'death')} whose price is not known" if unknown else ""
        sentences.append(f"memsup stepped in {plural(len(unasked), 'time')}, at a price of {duration(known)} altogether{more}.")
    elif account.ledger:
        sentences.append("Nothing had to be done.")
    if account.redone_steps:
        sentences.append(f"{plural(account.redone_steps, 'step')} had to be done a second time after a death.")
    effective = status.batch.effective
    if effective is not None and account.interventions:
        sentences.append(f"Every optimizer step saw {plural(effective, 'sample')}, as planned.")
    return " ".join(sentences)


def figures(material: Material, account: Account) -> Iterator[Figure]:
    status = material.status
    total_s = sum(account.spent_s.values())
    if total_s:
        trained = account.spent_s.get(Activity.TRAINING, 0.0)
        yield Figure(percent(trained / total_s), f"of {duration(total_s)} spent training")
    unasked = [i for i in account.interventions if not i.asked]
    yield Figure(duration(account.cost_s) if unasked else "0 s", f"price of {plural(len(unasked), 'intervention')}")
    kinds = Counter(i.kind for i in account.interventions)
    deaths = kinds[Kind.DEATH]
    machine = sum(i.kind is Kind.MACHINE and not i.asked for i in account.interventions)
    yield Figure(count(deaths), "worker restarted" if deaths == 1 else "worker restarts")
    if machine:
        yield Figure(count(machine), "death of the machine" if machine == 1 else "deaths of the machine")
    most = max((p.worker_bytes for p in material.points if p.worker_bytes is not None), default=None)
    limit = max((p.limit_bytes for p in material.points if p.limit_bytes is not None), default=None)
    if most is not None:
        allowed = f", of {size(limit)} allowed" if limit else ""
        yield Figure(size(most), f"most memory{allowed}{_against_estimate(material, most)}")
    errors = sorted(p.prediction_error for p in material.points if p.prediction_error is not None)
    if errors:
        yield Figure(percent(errors[len(errors) // 2]), "off, the prediction of a step's memory; the median")
    hottest = _hottest(material)
    if hottest is not None:
        yield hottest
    speeds = [m.point.samples_per_s for m in account.moments if m.point.samples_per_s]
    if speeds:
        yield Figure(f"{sorted(speeds)[len(speeds) // 2]:.3g}", "samples/s, the median")
    if status is not None and status.checkpoint.step is not None:
        yield Figure(count(status.checkpoint.step), "step of the newest checkpoint")


def _against_estimate(material: Material, most_bytes: int) -> str:
    """What was expected with the largest micro-batches that there were, and by how much that was off.

    Empty where nothing was expected.
    """
    tokens = max((p.micro_tokens for p in material.points if p.micro_tokens is not None), default=None)
    if material.record is None or material.record.estimate is None or tokens is None:
        return ""
    expected = material.record.estimate.peak_bytes(tokens)
    return f" ({size(expected)} were estimated, {expected / most_bytes - 1:+.0%})"


def _hottest(material: Material) -> Figure | None:
    readings = [
        (gpu.temperature_c, f"hottest, GPU {gpu.index}", gpu.slowdown_c)
        for point in material.points
        for gpu in point.gpus
        if gpu.temperature_c is not None
    ]
    readings += [(p.cpu_c, "hottest, CPU or board", p.cpu_limit_c) for p in material.points if p.cpu_c is not None]
    if not readings:
        return None
    celsius, where, limit = max(readings, key=lambda reading: reading[0])
    return Figure(f"{celsius:.0f} °C", where + (f" (limit {limit:.0f} °C)" if limit else ""))


def period(account: Account) -> str:
    """The time that the report covers: `Mon 21:04 – Tue 06:12`."""
    return f"{clock(account.begin, with_day=True)} – {clock(account.end, with_day=True)}"


def share(fraction: float) -> str:
    """The share in per cent of something that did happen, and so is never nought."""
    return "under 1 %" if fraction < 0.01 else percent(fraction)
