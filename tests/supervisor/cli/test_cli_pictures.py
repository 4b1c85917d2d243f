"""The pictures in the documents are what the commands draw today, at three widths: no word broken, no line beyond the width."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kit import ROOT

from memsup.supervisor.words import width

PICTURES = ROOT / "docs/pictures"


def test_the_pictures_are_what_the_commands_draw(tmp_path: Path) -> None:
    """Where this fails because a screen is another now: `benchmarks/screens.py` draws them again."""
    subprocess.run([sys.executable, str(ROOT / "benchmarks/screens.py"), "--output", str(tmp_path)], check=True, timeout=100)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted(file.name for file in PICTURES.iterdir())
    for name in names:
        assert (PICTURES / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), name


def test_no_line_is_wider_than_its_terminal_and_no_word_is_broken() -> None:
    """Every word of the widest picture of a screen stands whole in the narrower ones as well."""
    for screen in ("status", "report"):
        widest = (PICTURES / f"{screen}-120.txt").read_text(encoding="utf-8").split()
        for cells in (60, 80, 120):
            text = (PICTURES / f"{screen}-{cells}.txt").read_text(encoding="utf-8")
            assert max(map(width, text.splitlines())) <= cells
            assert {word for word in widest if width(word) < 50} <= set(text.split())
    for cells in (60, 80, 120):
        assert max(map(width, (PICTURES / f"watch-{cells}.txt").read_text(encoding="utf-8").splitlines())) <= cells
