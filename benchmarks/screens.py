"""The pictures of the README: `status --watch` and `report` of one night, as text at three widths and as SVG.

    .venv/bin/python benchmarks/screens.py [--output docs/pictures]

The night is made up (`tests/kit/nights.py`): six hours with a squeeze, heat, a kill, a pause and a power cut, in which every
figure of the screens occurs. Nothing is measured here; what is drawn is what the commands draw of such a night.
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

from kit.nights import Night, eventful

from memsup.shared.paths import run_paths
from memsup.shared.status import ActionStatus, CheckpointStatus, RunState, Status, Wanted
from memsup.supervisor.cli.board import Board, board
from memsup.supervisor.cli.picture import picture
from memsup.supervisor.cli.screen import drawn
from memsup.supervisor.record.history import Point
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather, recorded
from memsup.supervisor.report.terminal import screen

SIZES = ((60, 12), (80, 24), (120, 30))
WATCHED_AFTER_S = 13_000.0
"""The screens show the night at this time after its beginning: after the kill, before the pause."""
TOTAL_STEPS = 9_600
SVG_CELLS, SVG_LINES = 100, 24


def screens(night: Night) -> Iterator[tuple[str, list[str]]]:
    """The name of each screen with its lines."""
    shown = watched(night, recorded(night.paths))
    report = report_of(night)
    for cells, lines in SIZES:
        yield f"watch-{cells}", board(shown, cells, lines, in_colour=False)
        yield f"status-{cells}", list(drawn(picture(shown.chosen, shown.now_unix_s), cells, in_colour=False))
        yield f"report-{cells}", list(drawn(report, cells, in_colour=False))


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


def svg(night: Night) -> str:
    """The watched screen in colour."""
    lines = board(watched(night, recorded(night.paths)), SVG_CELLS, SVG_LINES, in_colour=True)
    console = Console(record=True, width=SVG_CELLS, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(Text.from_ansi("\n".join(lines), no_wrap=True))
    return console.export_svg(title="memsup status --watch", unique_id="memsup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs/pictures")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TZ"] = "UTC"
    time.tzset()
    with tempfile.TemporaryDirectory() as state:
        os.environ |= {"MEMSUP_STATE_DIR": f"{state}/state", "MEMSUP_RUNTIME_DIR": f"{state}/runtime"}
        night = eventful(run_paths("reviews"))
        for name, lines in screens(night):
            (folder / f"{name}.txt").write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
        (folder / "watch.svg").write_text(svg(night), encoding="utf-8")


if __name__ == "__main__":
    main()
