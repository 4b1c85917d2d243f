"""What a program of a person's own imports runs on its interpreter, however old, with nothing installed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kit import ROOT
from kit.own_program import LOOP, undisturbed

FILES = sorted((ROOT / "program").glob("*.py"))
OLDEST = (3, 9)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_is_python_of_the_oldest_version_and_imports_the_standard_library_alone(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=OLDEST)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.partition(".")[0] in {"memsup", *sys.stdlib_module_names}, name
            parts = name.split(".")
            assert parts[0] != "memsup" or parts == ["memsup"] or (ROOT / "program" / f"{parts[1]}.py").exists(), name


def test_the_border_around_them_names_them_all() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (border,) = [contract for contract in contracts if contract["name"] == "What a person's own program imports stands alone"]
    assert border["source_modules"] == [f"memsup.{file.stem}" for file in FILES if file.stem != "__init__"]


def test_the_command_line_pays_nothing_for_it() -> None:
    code = "import sys, memsup; print([name for name in sys.modules if name.startswith('memsup.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_the_same_program_comes_to_the_same_on_other_versions(version: str, tmp_path: Path) -> None:
    interpreter = interpreter_of(version)
    if interpreter is None:
        pytest.skip(f"NOT RUN: there is no Python {version} here")
    here, there = undisturbed(tmp_path / "here"), tmp_path / "there"
    there.mkdir()
    (there / "loop.py").write_text(LOOP)
    (there / "memsup").symlink_to(ROOT / "program")
    environment = os.environ | {"STEP_S": "0", "PYTHONPATH": str(there), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([interpreter, "-W", "error", "loop.py"], cwd=there, env=environment, check=True, timeout=60)
    assert json.loads((there / "result.json").read_text()) == here


def test_an_older_version_is_told_so() -> None:
    interpreter = interpreter_of("3.8")
    if interpreter is None:
        pytest.skip("NOT RUN: there is no Python 3.8 here")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'build' / 'links')!r}); import memsup; memsup.guard"
    done = subprocess.run([interpreter, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: memsup.guard needs Python 3.9 or newer, and this is 3.8." in done.stderr


def interpreter_of(version: str) -> str | None:
    """A Python of that version that runs. Returns None where there is none."""
    homes = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    for candidate in [str(home) for home in homes] + [shutil.which(f"python{version}") or ""]:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None
