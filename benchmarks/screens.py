"""The pictures of the README: `status`, `status --watch`, `list` and `report` of one night, as text at three widths and as SVG,
and the report's page as a browser shows it.

    .venv/bin/python benchmarks/screens.py [--output docs/pictures] [--page]

The page is drawn with `--page` only: browsers differ by their version, so nothing compares it. The night is made up
(`tests/kit/nights.py`): six hours with a squeeze, heat, a kill, a pause and a power cut, in which every figure of the screens
occurs. Nothing is measured here; what is drawn is what the commands draw of such a night.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.browser import browser
from kit.nights import Night, eventful

from memsup.shared.paths import run_paths
from memsup.shared.status import ActionStatus, CheckpointStatus, RunState, Status, WaitingStatus, Wanted
from memsup.supervisor.cli.board import Board, board
from memsup.supervisor.cli.picture import picture
from memsup.supervisor.cli.runs import Found, rows
from memsup.supervisor.cli.screen import drawn
from memsup.supervisor.record.history import Point
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather, recorded
from memsup.supervisor.report.page import page
from memsup.supervisor.report.terminal import screen

SIZES = ((60, 12), (80, 24), (120, 30))
WATCHED_AFTER_S = 13_000.0
"""The screens show the night at this time after its beginning: after the kill, before the pause."""
TOTAL_STEPS = 9_600
SVG_CELLS, SVG_LINES = 100, 24
PAGE_WIDE, PAGE_HIGH = 1000, 900


def screens(night: Night) -> Iterator[tuple[str, list[str]]]:
    """The name of each screen with its lines."""
    shown = watched(night, recorded(night.paths))
    report = report_of(night)
    for cells, lines in SIZES:
        yield f"watch-{cells}", board(shown, cells, lines, in_colour=False)
        yield f"status-{cells}", list(drawn(picture(shown.chosen, shown.now_unix_s), cells, in_colour=False))
        yield f"list-{cells}", list(drawn(listed(shown), cells, in_colour=False))
        yield f"report-{cells}", list(drawn(report, cells, in_colour=False))


def coloured(night: Night) -> Iterator[tuple[str, list[str]]]:
    """The same as a person sees them on a terminal of one width."""
    shown = watched(night, recorded(night.paths))
    yield "watch", board(shown, SVG_CELLS, SVG_LINES, in_colour=True)
    yield "status", list(drawn(picture(shown.chosen, shown.now_unix_s), SVG_CELLS, in_colour=True))
    yield "list", list(drawn(listed(shown), SVG_CELLS, in_colour=True))
    yield "report", list(drawn(report_of(night), SVG_CELLS, in_colour=True))


def watched(night: Night, points: list[Point]) -> Board:
    """What `status --watch` has in the middle of the night."""
    begin = points[0].at
    seen = [point for point in points if point.at <= begin + WATCHED_AFTER_S]
    last, now = seen[-1], seen[-1].at
    status = msgspec.structs.replace(
        night.status(),
        state=RunState.RUNNING,
        since=now - 1_790,
        progress=msgspec.structs.replace(
            night.status().progress,
            phase="training",
            step=last.step,
            total_steps=TOTAL_STEPS,
            loss=last.loss,
            samples_per_s=last.samples_per_s,
            eta_s=(TOTAL_STEPS - (last.step or 0)) * 16 / (last.samples_per_s or 8),
        ),
        batch=msgspec.structs.replace(night.status().batch, micro_tokens=last.micro_tokens),
        checkpoint=CheckpointStatus(path="/x", step=(last.step or 0) - 40, age_s=81.0, verified=True),
        last_action=ActionStatus(
            at=now - 1_812,
            rung="kill",
            action="killed the whole tree, started again",
            reason="the worker used 11.9 GiB of its 12 GiB",
            result="micro-batch 1,024 → 512 tokens, training again after 21 s",
        ),
        restarts=1,
    )
    other = Status(run="polarity", state=RunState.FINISHED, wanted=Wanted.RUNNING, since=now - 40_000)
    readings = [(point.at, point.worker_bytes, point.loss) for point in seen]
    return Board(chosen=status, others=[other, status], readings=readings, now_unix_s=now)


def report_of(night: Night) -> list[str | tuple[str, ...]]:
    status = night.status()
    status.result = {"accuracy": 0.931, "majority_accuracy": 0.55}
    material = gather(night.paths, status, night.at)
    return screen(material, account(material))


def listed(shown: Board) -> list[tuple[str, ...]]:
    """What `list` has then, with one that is finished and one that waits for its turn."""
    waits = Status(run="roberta", state=RunState.WAITING, wanted=Wanted.RUNNING, since=shown.now_unix_s - 13_100)
    waits.waiting = WaitingStatus(runs=["reviews"], what_for="until reviews is over")
    runs = [(shown.chosen, 1_610), (waits, 1), (shown.others[0], 409)]
    found = [Found(status.run, status, is_up=True, size_bytes=mib << 20) for status, mib in runs]
    return rows(found, shown.now_unix_s)


def svg(lines: list[str], title: str) -> str:
    """A screen in colour."""
    console = Console(record=True, width=SVG_CELLS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi("\n".join(lines), no_wrap=True))
    return console.export_svg(title=title, unique_id="memsup")


def draw_page(night: Night, folder: Path) -> None:
    """The upper part of the page on a desk, light and dark."""
    status, at = night.status(), night.at
    status.result = {"accuracy": 0.931, "majority_accuracy": 0.55}
    status.model_path = "/home/me/.local/state/memsup/reviews/model"
    material = gather(night.paths, status, at)
    with tempfile.TemporaryDirectory() as name, browser(Path(name)) as chromium:
        file = Path(name, "report.html")
        file.write_text(page(material, account(material)), encoding="utf-8")
        for theme in ("light", "dark"):
            chromium.draw(file, PAGE_WIDE, dark=theme == "dark")
            (folder / f"page-{theme}.png").write_bytes(chromium.screenshot(PAGE_HIGH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs/pictures")
    parser.add_argument("--page", action="store_true", help="The page as well, with Chromium.")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TZ"] = "UTC"
    time.tzset()
    with tempfile.TemporaryDirectory() as state:
        os.environ |= {"MEMSUP_STATE_DIR": f"{state}/state", "MEMSUP_RUNTIME_DIR": f"{state}/runtime"}
        night = eventful(run_paths("reviews"))
        for name, lines in screens(night):
            (folder / f"{name}.txt").write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
        for name, lines in coloured(night):
            title = "memsup status --watch" if name == "watch" else f"memsup {name}"
            (folder / f"{name}.svg").write_text(svg(lines, title), encoding="utf-8")
        if arguments.page:
            draw_page(night, folder)


if __name__ == "__main__":
    main()
