"""The house can be drawn from memory: few doors on the landing, one floor upon the other, no hall with fifty drawers.

Which floor may import which, and that what decides is pure, is held by `make boundaries`.
"""

from __future__ import annotations

import ast
import re

from kit import ROOT

SUPERVISOR = ROOT / "supervisor"
MOST_MODULES = 6
MOST_ATTRIBUTES = 16
OF_A_RUN = {"cache/", "checkpoints/", "model/", "received/"}
"""Folders that the page names and that lie in a run's state."""


def attributes_of(class_name: str, source: str) -> set[str]:
    """The names that the methods of a class assign to on `self`."""
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name]
    return {
        node.attr
        for node in ast.walk(found)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_few_modules_lie_directly_in_the_supervisor() -> None:
    assert len(list(SUPERVISOR.glob("*.py"))) <= MOST_MODULES


def test_the_supervisor_is_composed_of_few_parts() -> None:
    found = attributes_of("Supervisor", (SUPERVISOR / "main.py").read_text(encoding="utf-8"))
    assert {"life", "guard", "journal"} <= found
    assert len(found) <= MOST_ATTRIBUTES, sorted(found)


def test_the_architecture_page_names_only_what_there_is() -> None:
    """Each file and folder that the page puts into backticks exists, where it says or below `supervisor/`."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py|(?:[a-z_]+/)+)`", page))
    assert len(named) > 20
    places = [ROOT, ROOT / "worker", SUPERVISOR, *(path for path in SUPERVISOR.rglob("*") if path.is_dir())]
    assert not {name for name in named - OF_A_RUN if not any((place / name).exists() for place in places)}


def test_every_folder_says_what_it_is_for() -> None:
    for package in ("supervisor", "worker", "shared", "checkpoint", "program"):
        for file in (ROOT / package).rglob("__init__.py"):
            assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def test_what_the_page_about_tests_names_is_there() -> None:
    """Files, and tests that it names in full."""
    text = (ROOT / "tests/README.md").read_text(encoding="utf-8")
    sources = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")}
    tests = {name for source in sources.values() for name in re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE)}
    assert set(re.findall(r"\btest_\w+\.py\b", text)) <= set(sources)
    assert set(re.findall(r"\btest_\w+(?![\w.…])", text)) <= tests
