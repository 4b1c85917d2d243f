"""The report as one HTML page. Pure; self-contained: no script, no network, no second file, and a policy that says so.

The answer comes first: what came of the run, where the model is and how to use it. Then what it cost, and why. It is read on a
phone as well as on a desk, so nothing in it is a table that would have to be wide. What others wrote passes through `marks`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from datetime import datetime

from memsup.shared.commands import command
from memsup.shared.settings import Settings, Share
from memsup.shared.status import OVER, RunState
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.report import plots
from memsup.supervisor.report.account import Account
from memsup.supervisor.report.axis import Moment
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.glossary import GLOSSARY, explained
from memsup.supervisor.report.interventions import Fact, Intervention
from memsup.supervisor.report.marks import clock, lines, text
from memsup.supervisor.report.outcome import Figure, details, figures, headline, period, summary
from memsup.supervisor.report.panels import panels
from memsup.supervisor.report.style import CSS
from memsup.supervisor.words import count, duration, percent, plural, size, use_rows

MOST_CARDS = 400
MOST_LEDGER_ROWS = 300
NEAR_S = 60.0
"""What was measured longer before or after than this says nothing of an intervention."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(material: Material, account: Account, *, again_s: int | None = None) -> str:
    """The page. With `again_s` an open browser loads it again after so many seconds; None is a page that stays as it is."""
    title, tone = headline(material, account)
    again = "" if again_s is None else f'<meta http-equiv="refresh" content="{again_s}">'
    parts = [
        f'<p class="over">memsup · run {text(material.run)} · {text(period(account))}</p>',
        f'<h1 class="{tone}">{text(title)}</h1>',
        f'<p class="lead">{text(summary(material, account))}</p>',
        *_attention(material),
        *_next(material),
        '<div class="tiles">',
        *map(_tile, figures(material, account)),
        "</div>",
        *_time(account),
        *_interventions(material.run, account),
        *_plots(account),
        *_answers(material),
        *_facts(account.facts),
        *_checkpoints(material),
        *_limits(material),
        *_ledger(account.ledger),
        *_words(),
        f"<footer>Written by <code>memsup report</code> at {_date(material.now_unix_s)}, in this computer's time.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">{again}'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>memsup: {text(material.run)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _tile(figure: Figure) -> str:
    return f'<div class="tile"><b>{text(figure.value)}</b><span>{explained(text(figure.meaning))}</span></div>'


def _attention(material: Material) -> Iterator[str]:
    sentences = [*(material.status.attention if material.status else []), *material.unreadable]
    if sentences:
        yield '<div class="attention">' + "".join(f"<p>{lines(sentence)}</p>" for sentence in sentences) + "</div>"


def _next(material: Material) -> Iterator[str]:
    """Where the model is and how it is used, or what to type next."""
    status, run = material.status, material.run
    if status is None:
        return
    if status.state is RunState.FINISHED and status.model_path and not status.is_command:
        rows = [("where", status.model_path), *use_rows(status)]
        yield "<h2>The model</h2>"
        yield _list((text(name), f"<code>{text(value)}</code>") for name, value in rows)
    elif status.state in OVER:
        if status.state is not RunState.FINISHED:
            yield _typed("Go on from the newest checkpoint", command("start", run))
    elif status.state is RunState.PAUSED:
        yield _typed("It is paused. Go on", command("resume", run))
    else:
        yield _typed("It goes on. Look at it", f"{command('status', run)} --watch")


def _typed(what: str, typed: str) -> str:
    return f'<p class="next">{what}: <code>{text(typed)}</code></p>'


def _time(account: Account) -> Iterator[str]:
    yield "<h2>The night at a glance</h2>"
    if not account.spent_s:
        yield '<p class="soft">No readings were recorded, so there is nothing to draw.</p>'
        return
    total_s = sum(account.spent_s.values())
    yield f'<div class="card">{plots.strip(account)}{plots.bar(account.spent_s)}<table>'
    for name, seconds in sorted(account.spent_s.items(), key=lambda item: -item[1]):
        yield f"<tr><td>{plots.swatch(name)}{explained(plots.DESCRIPTIONS[name])}</td>"
        yield f'<td class="n">{duration(seconds)}</td><td class="n">{percent(seconds / total_s)}</td></tr>'
    yield "</table></div>"


def _plots(account: Account) -> Iterator[str]:
    drawn = [figure for panel in panels(account) if (figure := plots.drawn(panel, account))]
    if drawn:
        yield "<h2>Readings</h2>"
        yield '<p class="soft">Dashed lines are limits, coloured bands are stretches without training, and each dotted line is '
        yield "an intervention. A peak between two points is kept: a point shows the worst of its seconds.</p>"
        yield from (f'<div class="card">{figure}</div>' for figure in drawn)


# --------------------------------------------------------------------------------------------------------------------
# What was done


def _interventions(run: str, account: Account) -> Iterator[str]:
    yield f"<h2>{explained('Interventions')}</h2>"
    shown = account.interventions
    if not shown:
        yield '<p class="soft">None.</p>'
        return
    if len(shown) > MOST_CARDS:
        dearest = sorted(shown, key=lambda i: -(i.cost_s or 0.0))[:MOST_CARDS]
        everything = text(f"{command('logs', run)} --events")
        yield f'<p class="soft">The {MOST_CARDS} dearest of {count(len(shown))}; {everything} has them all.</p>'
        shown = tuple(sorted(dearest, key=lambda i: i.number))
    yield '<div class="cards">'
    yield from (_card(i, _reading(account, i.x)) for i in shown)
    yield "</div>"


def _card(i: Intervention, reading: str) -> str:
    """One intervention: what, when, why, what was read then, what came of it, and its price."""
    step = "" if i.step is None else f", step {count(i.step)}"
    rows = [
        ("why", lines(i.why)),
        ("read", text(reading)),
        ("then", lines(i.result or "")),
        ("price", text(price(i))),
    ]
    told = "".join(f"<dt>{explained(name)}</dt><dd>{value}</dd>" for name, value in rows if value)
    return (
        f'<article class="card" id="i{i.number}"><h3><span class="badge b-{i.kind}">{i.number}</span>{explained(text(i.what))}'
        f'</h3><p class="soft">{clock(i.x, with_day=True)}{step}</p><dl>{told}</dl></article>'
    )


def _reading(account: Account, x: float) -> str:
    """What was measured nearest to that time."""
    place = bisect.bisect_right(account.moments, x, key=lambda moment: moment.x)
    near = account.moments[max(0, place - 1) : place + 1]
    moment: Moment | None = min(near, key=lambda moment: abs(moment.x - x), default=None)
    if moment is None or abs(moment.x - x) > NEAR_S:
        return ""
    point = moment.point
    hottest = max((gpu.temperature_c for gpu in point.gpus if gpu.temperature_c is not None), default=None)
    told = [
        f"worker {size(point.worker_bytes)} of {size(point.limit_bytes)}" if point.worker_bytes else "",
        f"{size(point.ram_available_bytes)} of RAM free" if point.ram_available_bytes is not None else "",
        f"GPU {hottest:.0f} °C" if hottest is not None else "",
        f"{count(point.micro_tokens)} tokens at a time" if point.micro_tokens is not None else "",
    ]
    return ", ".join(part for part in told if part)


def price(i: Intervention) -> str:
    """The price in words, `about 40 s`. What a person asked for has a length, not a price."""
    if i.cost_s is None:
        return "–"
    if i.asked:
        return f"({duration(i.cost_s)}, asked for)"
    return f"{i.cost_s:.1f} s" if i.cost_s < 10 else duration(i.cost_s)


def _facts(facts: tuple[Fact, ...]) -> Iterator[str]:
    if facts:
        yield "<h2>What the worker decided by itself</h2>"
        yield _list((clock(fact.x, with_day=True), lines(fact.text)) for fact in facts)


# --------------------------------------------------------------------------------------------------------------------
# What there is


def _list(rows: Iterable[tuple[str, str]]) -> str:
    """Names with what belongs to them, both already text of the page."""
    return f'<div class="card"><dl>{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)}</dl></div>'


def _answers(material: Material) -> Iterator[str]:
    """What a language model says to questions that were not trained on, before and after."""
    if not material.answers:
        return
    yield "<h2>What it answers</h2>"
    for answered in material.answers:
        said = (
            ("asked", answered.asked),
            ("in the data", answered.wanted),
            ("before", answered.before),
            ("now", answered.after),
        )
        yield _list((name, lines(words.strip()) or "nothing") for name, words in said if words is not None)


def _checkpoints(material: Material) -> Iterator[str]:
    yield "<h2>Checkpoints kept</h2>"
    if not material.checkpoints:
        yield '<p class="soft">None.</p>'
        return
    rows = []
    for info in material.checkpoints:
        step = "?" if info.step is None else f"step {count(info.step)}"
        written = "" if info.created_unix_s is None else f"{_date(info.created_unix_s)}, "
        note = f'<br><span class="bad">{lines(info.problem)}</span>' if info.problem else ""
        rows.append((step, f"{written}{size(info.bytes)}<br><code>{text(info.path)}</code>{note}"))
    yield _list(rows)


def _limits(material: Material) -> Iterator[str]:
    """What was asked for and what held, folded: the reader of the morning seldom needs it."""
    rows: list[tuple[str, str]] = [(figure.meaning, figure.value) for figure in details(material)]
    status, record = material.status, material.record
    if status is not None:
        memory = status.memory
        why = f" ({memory.fence_reason})" if memory.fence_reason else ""
        rows.append(("the worker may use", size(memory.limit_bytes)))
        rows.append(("fence", f"{memory.fence or '?'}, {size(memory.fence_bytes)}{why}"))
    if record is not None:
        rows += [("tier", f"{record.tier}: {record.tier_reason}"), *_settings(record.settings)]
        if record.command:
            # Its arguments stay out of a page that is passed around: people put passwords there.
            rows.append(("command", f"{record.command[0]} with {plural(len(record.command) - 1, 'argument')}"))
    if rows:
        yield "<h2>Limits and settings</h2><details><summary>Show them</summary>"
        yield _list((explained(text(name)), text(value)) for name, value in rows)
        yield "</details>"


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    adapts = settings.task.kind == "causal-lm" and settings.training.method != "full"
    for section_name in ("task", "training", *(["lora"] if adapts else []), "limits", "checkpoint"):
        section = getattr(settings, section_name)
        for name in section.__struct_fields__:
            value = getattr(section, name)
            if value is not None:
                yield f"{section_name}.{name}", percent(value.fraction) if isinstance(value, Share) else str(value)


def _ledger(ledger: tuple[tuple[float, Entry], ...]) -> Iterator[str]:
    if not ledger:
        return
    shown = ledger[-MOST_LEDGER_ROWS:]
    note = "" if len(shown) == len(ledger) else f", the last {len(shown)} of them here"
    yield f"<h2>{explained('Ledger')}</h2><details><summary>{plural(len(ledger), 'line')}{note}</summary>"
    rows = []
    for x, entry in shown:
        told = " → ".join(part for part in (entry.reason, entry.action, entry.result) if part)
        rows.append((f"{clock(x, with_day=True)}<br>{text(entry.event)}", lines(told)))
    yield _list(rows)
    yield "</details>"


def _words() -> Iterator[str]:
    yield "<h2>Words</h2><details><summary>What the underlined ones mean</summary>"
    yield _list((word, meaning) for word, meaning in GLOSSARY.items())
    yield "</details>"


def _date(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "?"
