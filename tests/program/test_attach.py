"""An interpreter of the command is as it is without memsup until it imports a Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kit import ROOT


def attaching(folder: Path) -> Path:
    """A folder as `fence/program.py` makes it."""
    folder.mkdir()
    (folder / "sitecustomize.py").symlink_to(ROOT / "program" / "attach_site.py")
    return folder


def says(code: str, *path: Path, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(str(folder) for folder in path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *flags, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_the_sitecustomize_of_the_user_comes_to_its_right(tmp_path: Path) -> None:
    ours, theirs = attaching(tmp_path / "ours"), tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "sitecustomize.py").write_text("import sys\nsys.seen = __file__\n")
    code = "import sys, sitecustomize; print(sys.seen, sitecustomize.__file__, len(sys.meta_path))"
    alone, attached = says(code, theirs).stdout.split(), says(code, ours, theirs).stdout.split()
    assert attached == [*alone[:2], str(int(alone[2]) + 1)]

    (theirs / "sitecustomize.py").write_text("import sys\nraise ValueError('theirs')\n")
    alone, attached = says("print(1)", theirs).stderr, says("print(1)", ours, theirs).stderr
    assert "ValueError: theirs" in attached
    assert attached == alone


def test_where_the_user_has_none_there_is_none_and_nothing_is_imported(tmp_path: Path) -> None:
    ours = attaching(tmp_path / "ours")
    code = (
        "import sys; names = {'memsup', 'sitecustomize', 'typing', 'importlib.util'}; print(sorted(names & set(sys.modules)))"
        "\nimport importlib.machinery\nprint(importlib.machinery.PathFinder.find_spec('memsup.no', ['/nowhere']))"
    )
    done = says(code, ours, flags=("-S",))
    assert done.stdout.split() == ["[]", "None"]  # -S: no site, so no sitecustomize
    with_it = says("import sys; print(sorted({'memsup', 'sitecustomize'} & set(sys.modules)), len(sys.meta_path))", ours)
    without = says("import sys; print(sorted({'memsup', 'sitecustomize'} & set(sys.modules)), len(sys.meta_path))")
    assert with_it.stderr == ""
    assert int(with_it.stdout.split()[-1]) == int(without.stdout.split()[-1]) + 1
    assert with_it.stdout.split()[:-1] == without.stdout.split()[:-1] == ["[]"]
    for flag in ("-I", "-E"):
        assert says("import sys; print(len(sys.meta_path))", ours, flags=(flag,)).stdout == f"{without.stdout.split()[-1]}\n"


def test_a_module_of_that_name_without_a_trainer_is_imported_all_the_same(tmp_path: Path) -> None:
    """And one that cannot be imported fails as it does alone."""
    ours, theirs = attaching(tmp_path / "ours"), tmp_path / "theirs"
    (theirs / "transformers").mkdir(parents=True)
    (theirs / "transformers" / "__init__.py").write_text("")
    (theirs / "transformers" / "trainer.py").write_text(
        "import os\nvalue = 7\nif 'FAILS' in os.environ: import no_such_module\n"
    )
    links = ROOT / "build" / "links"
    done = says("import transformers.trainer as t; print(t.value)", ours, theirs, links)
    assert done.stdout == "7\n"
    assert done.stderr.count("memsup: this program is fenced, not attached") == 1
    fails = (
        "import os; os.environ['FAILS'] = '1'\ntry:\n import transformers.trainer\nexcept ImportError as error: print(error)"
    )
    assert says(fails, ours, theirs, links).stdout == "No module named 'no_such_module'\n"
