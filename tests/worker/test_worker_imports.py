"""Imports that are made quicker: what they bring is what Python's own would have brought."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LISTED = """
import sys
from contextlib import nullcontext
from memsup.worker.imports import quick_scan_of_transformers

with quick_scan_of_transformers() if sys.argv[1] == "quick" else nullcontext():
    import transformers
    from transformers import models

for package in (transformers, models, models.bert):
    needs = {name: sorted(missing) for name, missing in package._object_missing_backend.items()}
    modules = {name: str(module) for name, module in package._class_to_module.items()}
    for listed in (package.__all__, package._modules, needs.items(), modules.items()):
        print(package.__name__, sorted(listed))
"""


def started(program: str, *arguments: str, folder: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_transformers_offers_what_it_offers_without_the_quick_scan() -> None:
    quick, plain = (
        (child.communicate()[0], child.returncode) for child in (started(LISTED, "quick"), started(LISTED, "plain"))
    )
    assert quick == plain
    assert "BertForSequenceClassification" in quick[0]


def test_a_transformers_that_scans_in_another_way_is_left_to_do_so(tmp_path: Path) -> None:
    utils = tmp_path / "transformers" / "utils"
    utils.mkdir(parents=True)
    for init in (utils.parent, utils):
        (init / "__init__.py").touch()
    (utils / "import_utils.py").write_text("found = 1\n", encoding="utf-8")
    program = """
from memsup.worker.imports import quick_scan_of_transformers

with quick_scan_of_transformers():
    from transformers.utils.import_utils import found
print(found)
"""
    assert started(program, folder=tmp_path).communicate()[0] == "1\n"


@pytest.mark.slow
def test_the_code_of_a_model_is_told_by_its_folder_and_nothing_else_is_imported(tmp_path: Path) -> None:
    """In a process of its own, since others here have imported it already."""
    code = """\
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from pathlib import Path
from memsup.worker.imports import import_code_of, quick_scan_of_transformers
folder = Path(sys.argv[1])
config = folder / "config.json"
import_code_of(folder)
for nonsense in ("", "[]", "{}", '{"model_type": 3}', '{"model_type": "../bert"}', "[" * 100_000):
    config.write_text(nonsense)
    import_code_of(folder)
assert "transformers" not in sys.modules
config.write_text('{"model_type": "bert"}')
with quick_scan_of_transformers():
    import_code_of(folder)
assert {"modeling_bert", "tokenization_bert"} <= {name.rpartition(".")[2] for name in sys.modules}
assert len(os.listdir("/proc/self/task")) == 1
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
