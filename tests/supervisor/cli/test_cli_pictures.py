"""The pictures in the documents are what the commands draw today, at three widths: no word broken, no line beyond the width."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from kit import ROOT

from memsup.shared.settings import keys
from memsup.supervisor.cli.group import memsup as group
from memsup.supervisor.cli.options import FLAGS, TrainingCommand
from memsup.supervisor.words import width

PICTURES = ROOT / "docs/pictures"


def test_the_pictures_are_what_the_commands_draw(tmp_path: Path) -> None:
    """Where this fails because a screen is another now: `benchmarks/screens.py` draws them again."""
    subprocess.run([sys.executable, str(ROOT / "benchmarks/screens.py"), "--output", str(tmp_path)], check=True, timeout=100)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted(file.name for file in PICTURES.iterdir() if file.suffix != ".png")
    for name in names:
        assert (PICTURES / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), name


def test_no_line_is_wider_than_its_terminal_and_no_word_is_broken() -> None:
    """Every word of the widest picture of a screen stands whole in the narrower ones as well."""
    for screen in ("status", "list", "report"):
        widest = (PICTURES / f"{screen}-120.txt").read_text(encoding="utf-8").split()
        for cells in (60, 80, 120):
            text = (PICTURES / f"{screen}-{cells}.txt").read_text(encoding="utf-8")
            assert max(map(width, text.splitlines())) <= cells
            assert {word for word in widest if width(word) < 50} <= set(text.split())
    for cells in (60, 80, 120):
        assert max(map(width, (PICTURES / f"watch-{cells}.txt").read_text(encoding="utf-8").splitlines())) <= cells


READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("readme", READMES, ids=lambda file: file.name)
def test_what_the_readme_has_typed_exists(readme: Path) -> None:
    """Every command with its options, every setting, every file that is linked to, and the night as it is recorded."""
    text = readme.read_text(encoding="utf-8")
    for in_a_line, alone in re.findall(r"`memsup ([^`]+)`|^ {4}memsup ([^#\n]+)", text, re.MULTILINE):
        name, *words = (in_a_line or alone).partition(" -- ")[0].split()
        command = group.get_command(click.Context(group), name)
        assert command is not None, f"memsup {name}"
        if isinstance(command, click.Group):
            name, command = f"{name} {words[0]}", command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, TrainingCommand):  # which takes the spellings of training scripts
            known |= {spelling for flag in FLAGS for spelling in flag.spellings}
            words = [word.replace("_", "-") for word in words]
        assert not [word for word in words if word.startswith("-") and word not in known], f"memsup {name}"
    start = group.get_command(click.Context(group), "start")
    assert start is not None
    of_start = {option for parameter in start.params for option in parameter.opts}
    alone = set(re.findall(r"`(--[a-z][a-z-]+)(?=[ `])", text))
    assert alone - of_start == {"--follow"}, "which is an option of `report`"
    assert {key for key in re.findall(r"--set ([a-z_.]+)=", text) if key not in keys()} == set()
    links = {link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if not (readme.parent / link).exists()}
    assert links == set()
    night = text.partition("$ memsup report\n")[2].partition("\n```")[0]
    recorded = (PICTURES / "report-80.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in night.splitlines() if line != "…" and line not in recorded] == []


def test_a_link_to_a_heading_leads_to_one() -> None:
    """In the READMEs and all documents, as GitHub names headings."""
    broken = []
    for document in [*READMES, *(ROOT / "docs").glob("*.md")]:
        for file, name in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", document.read_text(encoding="utf-8")):
            headings = re.findall(
                r"^#+ (.*)$", (document.parent / (file or document.name)).read_text(encoding="utf-8"), re.MULTILINE
            )
            names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            if name not in names:
                broken.append(f"{document.name}: {file}#{name}")
    assert broken == []


def test_both_readmes_have_the_same_typed() -> None:
    """In their own words."""
    shape = re.compile(r"--set [a-z_.]+=\w*|--(?:tier|epochs|batch-size|max-length) \w+")
    english, chinese = (set(shape.findall(file.read_text(encoding="utf-8"))) for file in READMES)
    assert english == chinese
