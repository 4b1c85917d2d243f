"""The same training with Hugging Face's Trainer in other environments: other versions of Python, torch and transformers, with
nothing of memsup (docs/own-programs.md).

    python benchmarks/own_pythons.py PYTHON …

In each it is run by itself, then under `memsup start --`: killed once with SIGKILL, paused with `--release`, stopped, started.
Weights, numbers of the log and the user's checkpoints are compared. Prints Markdown; exit code 1 if any differ.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit import trainer_program
from kit.cli_process import end_supervisors, memsup
from kit.run_state import status, step_of, until

VERSIONS = "import sys, torch, transformers; print(sys.version.split()[0], torch.__version__, transformers.__version__)"
OVER = {"finished", "failed", "stopped"}


def main() -> int:
    print("| Python | torch | transformers | memsup there | under memsup |\n|---|---|---|---|---|")
    different = 0
    for python in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="pythons-", dir="/tmp") as folder:
            found = proved(python, Path(folder))
        different += found is not None
        versions = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout.split()
        has = subprocess.run([python, "-c", "import memsup"], check=False, capture_output=True).returncode == 0
        row = [*versions, "yes" if has else "no", found or "killed, released, stopped and started: the same bits and log"]
        print(f"| {' | '.join(row)} |", flush=True)
    return 1 if different else 0


def proved(python: str, folder: Path) -> str | None:
    """What is different under memsup. It is None where nothing is."""
    os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/s", "MEMSUP_RUNTIME_DIR": f"{folder}/r"}
    environment = trainer_program.QUIET | {"KIND": "masked", "STEP_S": "0"}
    for name in ("alone", "guarded"):
        (folder / name).mkdir()
        (folder / name / "train.py").write_text(trainer_program.PROGRAM)
    own = os.environ | environment
    subprocess.run([python, "train.py"], cwd=folder / "alone", env=own, check=True, capture_output=True)
    environment["STEP_S"] = "0.05"
    try:
        started = memsup("start", "-d", "--", python, "train.py", cwd=folder / "guarded", **environment)
        assert started.returncode == 0, started.stderr
        seen = trained_beyond(3)
        memsup("checkpoint")
        os.kill(seen["worker_pid"], signal.SIGKILL)
        trained_beyond(0, not_of=seen["worker_pid"])
        for command in (["pause", "--release"], ["resume"], ["stop"], ["start", "-d"]):
            done = memsup(*command, **environment)
            if done.returncode != 0:
                return f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}"
        ended = until(lambda seen: seen["state"] in OVER, 150)
        if ended["state"] != "finished":
            return f"{ended['state']}: {memsup('status').stdout[-800:]}"
        if step_of(ended) != ended["progress"]["total_steps"]:
            return f"ended at step {step_of(ended)}"
    finally:
        end_supervisors()
    return ", ".join(trainer_program.differences(folder / "alone", folder / "guarded")) or None


def trained_beyond(step: int, not_of: int | None = None) -> Any:
    def does(seen: Any) -> bool:
        is_attached = seen["program"] and seen["program"]["attached"] and seen["worker_pid"] not in {not_of, None}
        return seen["state"] in OVER or bool(is_attached and seen["state"] == "running" and step_of(seen) > step)

    seen = until(does, 120)
    assert seen["state"] not in OVER, (seen["state"], status()["attention"])
    return seen


if __name__ == "__main__":
    sys.exit(main())
