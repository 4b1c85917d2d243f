"""The report as one HTML page. Pure; self-contained: no script, no network, no second file, and a policy that says so.

What others wrote passes through `marks.text`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from memsup.shared.commands import command
from memsup.shared.settings import Settings, Share
from memsup.supervisor.record.ledger import Entry
from memsup.supervisor.report import plots
from memsup.supervisor.report.account import Account
from memsup.supervisor.report.gather import Material
from memsup.supervisor.report.interventions import Fact, Intervention
from memsup.supervisor.report.marks import clock, text
from memsup.supervisor.report.outcome import figures, headline, period, summary
from memsup.supervisor.report.panels import panels
from memsup.supervisor.report.style import CSS
from memsup.supervisor.words import count, duration, percent, plural, size

MOST_ROWS = 400
MOST_LEDGER_ROWS = 300
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(material: Material, account: Account) -> str:
    title, tone = headline(material, account)
    parts = [
        f'<p class="over">memsup · run {text(material.run)} · {text(period(account))}</p>',
        f'<h1 class="{tone}">{text(title)}</h1>',
        f'<p class="lead">{text(summary(material, account))}</p>',
        *_attention(material),
        '<div class="tiles">',
        *(f'<div class="tile"><b>{text(f.value)}</b><span>{text(f.meaning)}</span></div>' for f in figures(material, account)),
        "</div>",
        *_time(account),
        *_plots(account),
        *_interventions(material.run, account.interventions),
        *_facts(account.facts),
        *_checkpoints(material),
        *_limits(material),
        *_ledger(account.ledger),
        f"<footer>Written by <code>memsup report</code> at {_date(material.now_unix_s)}, in this computer's time.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>memsup: {text(material.run)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _attention(material: Material) -> Iterator[str]:
    sentences = [*(material.status.attention if material.status else []), *material.unreadable]
    if sentences:
        yield '<div class="attention">' + "".join(f"<p>{text(sentence)}</p>" for sentence in sentences) + "</div>"


def _time(account: Account) -> Iterator[str]:
    yield "<h2>The night at a glance</h2>"
    if not account.spent_s:
        yield '<p class="soft">No readings were recorded, so there is nothing to draw.</p>'
        return
    total_s = sum(account.spent_s.values())
    yield f'<div class="card">{plots.strip(account)}</div>'
    yield f"<h2>Where {duration(total_s)} went</h2>"
    rows = "".join(
        f"<tr><td>{plots.swatch(name)}{plots.DESCRIPTIONS[name]}</td>"
        f'<td class="n">{duration(seconds)}</td><td class="n">{percent(seconds / total_s)}</td></tr>'
        for name, seconds in sorted(account.spent_s.items(), key=lambda item: -item[1])
    )
    yield f'<div class="card">{plots.bar(account.spent_s)}<table>{rows}</table></div>'


def _plots(account: Account) -> Iterator[str]:
    drawn = [svg for panel in panels(account) if (svg := plots.drawn(panel, account))]
    if drawn:
        yield "<h2>Readings</h2>"
        yield '<p class="soft">Dashed lines are limits, coloured bands are stretches without training, and each dotted line is '
        yield "an intervention. A peak between two points is kept: a point shows the worst of its seconds.</p>"
        yield from (f'<div class="card">{svg}</div>' for svg in drawn)


def _interventions(run: str, interventions: tuple[Intervention, ...]) -> Iterator[str]:
    yield "<h2>Interventions</h2>"
    if not interventions:
        yield '<p class="soft">None.</p>'
        return
    shown = interventions
    if len(shown) > MOST_ROWS:
        dearest = sorted(shown, key=lambda i: -(i.cost_s or 0.0))[:MOST_ROWS]
        shown = tuple(sorted(dearest, key=lambda i: i.number))
        everything = text(f"{command('logs', run)} --events")
        yield f'<p class="soft">The {MOST_ROWS} dearest of {count(len(interventions))}; {everything} has them all.</p>'
    yield '<div class="card wide"><table><tr><th></th><th>Time</th><th class="n">Step</th><th>What was done</th><th>Why</th>'
    yield '<th>What came of it</th><th class="n">Price</th></tr>'
    for i in shown:
        step = "" if i.step is None else count(i.step)
        yield (
            f'<tr id="i{i.number}"><td><span class="badge b-{i.kind}">{i.number}</span></td>'
            f'<td class="t">{clock(i.x, with_day=True)}</td><td class="n">{step}</td><td>{text(i.what)}</td>'
            f'<td>{text(i.why)}</td><td>{text(i.result or "")}</td><td class="n">{text(price(i))}</td></tr>'
        )
    yield "</table></div>"


def _facts(facts: tuple[Fact, ...]) -> Iterator[str]:
    if facts:
        yield "<h2>What the worker decided by itself</h2>"
        yield '<div class="card wide"><table>'
        yield from (f'<tr><td class="t">{clock(fact.x, with_day=True)}</td><td>{text(fact.text)}</td></tr>' for fact in facts)
        yield "</table></div>"


def price(i: Intervention) -> str:
    """The price in words, `about 40 s`. What a person asked for has a length, not a price."""
    if i.cost_s is None:
        return "–"
    if i.asked:
        return f"({duration(i.cost_s)}, asked for)"
    return f"{i.cost_s:.1f} s" if i.cost_s < 10 else duration(i.cost_s)


def _checkpoints(material: Material) -> Iterator[str]:
    yield "<h2>Checkpoints kept</h2>"
    if not material.checkpoints:
        yield '<p class="soft">None.</p>'
        return
    yield '<div class="card wide"><table><tr><th class="n">Step</th><th>Written</th><th class="n">Size</th><th>Where</th>'
    yield "<th></th></tr>"
    for info in material.checkpoints:
        step = "?" if info.step is None else count(info.step)
        written = "" if info.created_unix_s is None else _date(info.created_unix_s)
        note = f'<span class="bad">{text(info.problem)}</span>' if info.problem else ""
        yield (
            f'<tr><td class="n">{step}</td><td class="t">{written}</td><td class="n">{size(info.bytes)}</td>'
            f"<td><code>{text(info.path)}</code></td><td>{note}</td></tr>"
        )
    yield "</table></div>"


def _limits(material: Material) -> Iterator[str]:
    """What was asked for and what held, in a folded table: the reader of the morning seldom needs it."""
    rows: list[tuple[str, str]] = []
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
        yield "<h2>Limits and settings</h2><details><summary>Show them</summary><div class='card'><table>"
        yield from (f"<tr><td class='t'>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
        yield "</table></div></details>"


def _settings(settings: Settings) -> Iterator[tuple[str, str]]:
    for section_name in ("task", "training", "limits", "checkpoint"):
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
    yield f"<h2>Ledger</h2><details><summary>{count(len(ledger))} lines{note}</summary>"
    yield "<div class='card wide'><table class='log'>"
    for x, entry in shown:
        told = " → ".join(part for part in (entry.reason, entry.action, entry.result) if part)
        when = clock(x, with_day=True)
        yield f"<tr><td class='t'>{when}</td><td class='t'>{text(entry.event)}</td><td>{text(told)}</td></tr>"
    yield "</table></div></details>"


def _date(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return "?"
