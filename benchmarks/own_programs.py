"""What it costs a program with Hugging Face's Trainer to be guarded without a line of code (docs/own-programs.md).

    python benchmarks/own_programs.py [pairs]

*Start*: the processor time of an interpreter that does nothing, with and without the folder that waits for a Trainer.
*Price*: the processor time of a training's steps, with one thread, alone and under `memsup start`, in turn; nothing is saved
meanwhile and nothing is cut. Processor time is compared, since other programs on the machine change every other one.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.cli_process import MEMSUP  # noqa: E402
from kit.trainer_program import PROGRAM, QUIET  # noqa: E402

STEPS, LEAD = 120, 20
"""Steps of a training, and how many of them are not counted."""
SHAPE = '{"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}'
ARGUMENTS = (
    f'{{"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": {STEPS}, "save_strategy": "no"}}'
)
MARK = f"if self.state.global_step in ({LEAD}, {STEPS - 1}): open('marks', 'a').write(f'{{time.process_time()}}\\n')"
EMPTY_STARTS = 30


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="memsup-", dir="/tmp") as folder:
        start(Path(folder))
        price(Path(folder), pairs)


def start(folder: Path) -> None:
    ours = folder / "attaching"
    ours.mkdir()
    (ours / "sitecustomize.py").symlink_to(ROOT / "program" / "attach_site.py")
    took: dict[str, list[float]] = {"": [], str(ours): []}
    for _ in range(EMPTY_STARTS):
        for path, found in took.items():
            found.append(cpu_s([sys.executable, "-c", "pass"], os.environ | {"PYTHONPATH": path}))
    alone, attached = (statistics.median(found) * 1000 for found in took.values())
    print(f"start of an interpreter, median of {EMPTY_STARTS}: {alone:.1f} ms alone, {attached - alone:+.1f} ms attached")


def cpu_s(command: list[str], environment: dict[str, str]) -> float:
    """The processor time of a command, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def price(folder: Path, pairs: int) -> None:
    program = QUIET | {"SHAPE": SHAPE, "ARGUMENTS": ARGUMENTS, "IN_A_STEP": MARK, "ROWS": "400"}
    own = {
        "MEMSUP_STATE_DIR": str(folder / "state"),
        "MEMSUP_RUNTIME_DIR": str(folder / "run"),
        "MEMSUP_CHECKPOINT_EVERY": "1000s",
    }
    took: dict[str, list[float]] = {"alone": [], "guarded": []}
    for pair in range(pairs):
        for way in ("alone", "guarded") if pair % 2 == 0 else ("guarded", "alone"):
            place = folder / f"{way}{pair}"
            place.mkdir()
            (place / "train.py").write_text(PROGRAM)
            command = [sys.executable, "train.py"]
            if way == "guarded":
                command = [*MEMSUP, "start", "--fresh", "--wait", "--", *command]
            with open(place / "printed", "wb") as printed:
                subprocess.run(command, cwd=place, env=os.environ | program | own, check=True, stdout=printed, stderr=printed)
            first, last = (float(line) for line in (place / "marks").read_text().splitlines())
            took[way].append((last - first) / (STEPS - 1 - LEAD) * 1000)
            print(f"pair {pair + 1}, {way}: {took[way][-1]:.2f} ms of processor time a step", flush=True)
    alone, guarded = (statistics.median(found) for found in took.values())
    print(f"median of {pairs}: {alone:.2f} ms alone, {guarded:.2f} ms guarded, {guarded / alone - 1:+.1%}")


if __name__ == "__main__":
    main()
