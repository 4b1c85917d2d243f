"""The report in sentences and figures: what came of the run, what it cost, what is to be known. Pure; for page and terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from memsup.shared.status import OVER, RunState, Status, Wanted
from memsup.supervisor.record.history import Activity
from memsup.supervisor.report.account import Account
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.interventions import Kind
from memsup.supervisor.report.marks import clock
from memsup.supervisor.words import (
    computing_text,
    count,
    duration,
    ending_line,
    percent,
    plural,
    reached,
    reached_text,
    result_line,
    share_right,
    size,
)


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
            return f"{str(state).capitalize()}, after {lasted}", "warn" if status.attention else "good"


def summary(material: Material, account: Account) -> str:
    """One paragraph, the answer to "how was the night?"."""
    status = material.status or Status(run=material.run, state=RunState.STOPPED, wanted=Wanted.STOPPED)
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in (result_line(status), ending_line(status)) if sentence]
    where = reached(status) if status.state is not RunState.FINISHED else None
    if where is not None and (where.step or where.lost_from):
        over = status.state in OVER
        sentences.append(f"It is at {reached_text(where, status.progress.total_steps, over=over)}.")
    elif status.state in OVER and status.state is not RunState.FINISHED and status.batch.effective is not None:
        sentences.append("No step was done.")
    sentences += _what_was_done(account)
    if account.redone_steps:
        sentences.append(f"{plural(account.redone_steps, 'step')} had to be done a second time after a death.")
    effective = status.batch.effective
    if effective is not None and status.progress.step and account.interventions:
        sentences.append(f"Every optimizer step saw {plural(effective, 'sample')}, as planned.")
    return " ".join(sentences)


def _what_was_done(account: Account) -> Iterator[str]:
    """What memsup did, what befell the run, and the price of both, as far as it is known."""
    unasked = [i for i in account.interventions if not i.asked]
    done, befell = [i for i in unasked if i.by_memsup], [i for i in unasked if not i.by_memsup]
    if done:
        known = [i.cost_s for i in done if i.cost_s is not None]
        price = f", at a price of {duration(sum(known))} altogether" if known else ""
        unknown = sum(i.cost_s is None and i.restarted for i in done)
        yield f"memsup stepped in {plural(len(done), 'time')}{price}."
        if unknown:
            yield f"The price of {plural(unknown, 'death')} is not known."
    for kind, who in ((Kind.DEATH, "The worker"), (Kind.MACHINE, "The machine"), (Kind.OTHER, "The supervisor")):
        times = [i for i in befell if i.kind is kind and not i.waits]
        if times:
            costs = [i.cost_s for i in times if i.cost_s is not None]
            price = f", at a price of {duration(sum(costs))}" if costs else ""
            ended = "ended and was not started again" if kind is Kind.DEATH else "died and was started again"
            often = "" if len(times) == 1 else f" {plural(len(times), 'time')}"
            yield f"{who} {ended}{often}{price}."
    if any(i.waits for i in befell):
        yield "The worker ended and is to be started again."
    if account.ledger and not unasked:
        yield "Nothing had to be done."


def figures(material: Material, account: Account) -> Iterator[Figure]:
    """The figures that answer what a person asks in the morning, the result first."""
    status = material.status
    if status is not None and status.result and (accuracy := status.result.get("accuracy")) is not None:
        majority = status.result.get("majority_accuracy")
        beside = "" if majority is None else f"; always the most frequent label: {share_right(majority)}"
        yield Figure(share_right(accuracy), f"accuracy{beside}")
    if status is not None and status.result and (f1 := status.result.get("f1")) is not None:
        of_label = [f"{name.removeprefix('f1_of_')} {value:.3f}" for name, value in status.result.items() if "f1_of_" in name]
        yield Figure(f"{f1:.3f}", f"F1 of exact spans{'; ' * bool(of_label)}{', '.join(of_label)}")
    if status is not None and status.result and (micro := status.result.get("micro_f1")) is not None:
        yield Figure(f"{micro:.3f}", f"micro F1; all labels right: {share_right(status.result.get('exact_match', 0))}")
    if status is not None and status.result and (pearson := status.result.get("pearson")) is not None:
        spearman = status.result.get("spearman")
        beside = "" if spearman is None else f"; Spearman: {spearman:.3f}"
        yield Figure(f"{pearson:.3f}", f"Pearson correlation of the numbers{beside}")
    total_s = sum(account.spent_s.values())
    for activity in (Activity.TRAINING, Activity.RUNNING):
        if seconds := account.spent_s.get(activity):
            yield Figure(percent(seconds / total_s), f"of {duration(total_s)} spent {activity}")
    unasked = [i for i in account.interventions if not i.asked]
    done = sum(i.by_memsup for i in unasked)
    befell = f" and {plural(len(unasked) - done, 'death')}" if done < len(unasked) else ""
    known = [i.cost_s for i in unasked if i.cost_s is not None]
    if known or not unasked:
        yield Figure(duration(sum(known)), f"price of {plural(done, 'intervention')}{befell}")
    restarts = sum(i.restarted for i in account.interventions)
    machine = sum(i.kind is Kind.MACHINE and not i.asked for i in account.interventions)
    yield Figure(count(restarts), "worker restarted" if restarts == 1 else "worker restarts")
    if machine:
        yield Figure(count(machine), "death of the machine" if machine == 1 else "deaths of the machine")
    measured = [(p.worker_bytes, p.limit_bytes) for p in material.points if p.worker_bytes is not None]
    if measured:
        most, limit = max(measured, key=lambda point: point[0])
        allowed = f", of {size(limit)} allowed then" if limit else ""
        yield Figure(size(most), f"most memory{allowed}{_against_estimate(material, most)}")
    hottest = _hottest(material)
    if hottest is not None:
        yield hottest
    speeds = [m.point.samples_per_s for m in account.moments if m.point.samples_per_s]
    if speeds:
        yield Figure(f"{sorted(speeds)[len(speeds) // 2]:.3g}", "samples/s, the median")
    if status is not None and status.checkpoint.step is not None:
        yield Figure(count(status.checkpoint.step), "step of the newest checkpoint")


def details(material: Material) -> Iterator[Figure]:
    """Figures for whoever wants to know how well memsup foresaw what it did."""
    errors = sorted(p.prediction_error for p in material.points if p.prediction_error is not None)
    if errors:
        yield Figure(percent(errors[len(errors) // 2]), "off, the prediction of a step's memory; the median")
    if material.status is not None and (computing := material.status.batch.computing) is not None:
        yield Figure(computing_text(computing), "what training makes of this machine's arithmetic")


def _against_estimate(material: Material, most_bytes: int) -> str:
    """What was expected with the largest micro-batches that there were, and by how much that was off.

    Empty where nothing was expected.
    """
    tokens = max((p.micro_tokens for p in material.points if p.micro_tokens is not None), default=None)
    if material.record is None or material.record.estimate is None or tokens is None:
        return ""
    expected = material.record.estimate.peak_bytes(tokens)
    return f" ({size(expected)} were estimated, {100 * (expected / most_bytes - 1):+.0f} %)"


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
