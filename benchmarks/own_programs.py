"""What it costs a program with Hugging Face's Trainer to be guarded without a line of code (docs/own-programs.md).

    python benchmarks/own_programs.py [--turns 40] [--starts 5]

*Start*: the seconds from the command to its first step, alone and under `memsup start`, in turn; and the processor time of an
interpreter that does nothing, with and without the folder that waits for a Trainer.
*Price*: two trainings live at once, alone and under `memsup start`, and take turns of some steps each, since other programs on
the machine change every other minute: seconds by the clock and of processor time of a turn, beside the turn just before or
after it. Nothing is saved meanwhile and nothing is cut. What the supervisor takes, on another core, is `supervision.py`'s.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.cli_process import MEMSUP  # noqa: E402
from kit.trainer_program import PROGRAM, QUIET  # noqa: E402

TURN, LEAD = 20, 40
"""Steps of a turn, and how many are made before the first."""
SHAPE = '{"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}'
TAKES_TURNS = f"""
step, last, mine, theirs = self.state.global_step, *json.loads(os.environ["TURNS"])
def note(end):
    with open("turns", "a") as file:
        file.write(f"{{time.monotonic()}} {{time.process_time()}}{{end}}")
if step >= {LEAD} and step % {TURN} == 0:
    note(" ")
    if step < last if mine < theirs else step > {LEAD}:
        open(theirs, "w").close()
    if step < last:
        open(mine).close()
    note("\\n")
"""
"""A pipe of each is opened by both: that waits for the other."""
SAYS_WHEN = "open('first', 'x').write(str(time.monotonic())) if self.state.global_step == 1 else None"
EMPTY_STARTS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--starts", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsup-", dir="/tmp") as folder:
        empty_start(Path(folder))
        if options.starts:
            start(Path(folder), options.starts)
        if options.turns:
            price(Path(folder), options.turns)


def begun(folder: Path, way: str, steps: int, **more: str) -> subprocess.Popen[bytes]:
    """The training, begun in a folder of its own, alone or guarded."""
    place = folder / way
    place.mkdir()
    (place / "train.py").write_text(PROGRAM)
    arguments = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": steps, "save_strategy": "no"}
    own = {
        "MEMSUP_STATE_DIR": str(folder / "state"),
        "MEMSUP_RUNTIME_DIR": str(folder / "run"),
        "MEMSUP_CHECKPOINT_EVERY": "1000s",
    }
    program = QUIET | {"SHAPE": SHAPE, "ARGUMENTS": json.dumps(arguments), "ROWS": "400"}
    command = [sys.executable, "train.py"]
    if way.startswith("guarded"):
        command = [*MEMSUP, "start", "--fresh", "--wait", "--", *command]
    with open(place / "printed", "wb") as printed:
        return subprocess.Popen(command, cwd=place, env=os.environ | program | own | more, stdout=printed, stderr=printed)


def start(folder: Path, pairs: int) -> None:
    took: dict[str, list[float]] = {"alone": [], "guarded": []}
    for pair in range(pairs):
        for way in ("alone", "guarded") if pair % 2 == 0 else ("guarded", "alone"):
            began_s = time.monotonic()
            assert begun(folder, f"{way}-start{pair}", 2, IN_A_STEP=SAYS_WHEN).wait() == 0
            took[way].append(float((folder / f"{way}-start{pair}" / "first").read_text()) - began_s)
    alone, guarded = (statistics.median(found) for found in took.values())
    print(f"to the second step, median of {pairs}: {alone:.2f} s alone, {guarded:.2f} s guarded, {guarded - alone:+.2f} s")


def empty_start(folder: Path) -> None:
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


def price(folder: Path, turns: int) -> None:
    pipes = {way: str(folder / f"{way}.pipe") for way in ("alone", "guarded")}
    for pipe in pipes.values():
        os.mkfifo(pipe)
    last = LEAD + turns * TURN
    programs = []
    for way, other in (("alone", "guarded"), ("guarded", "alone")):
        takes_turns = json.dumps([last, pipes[way], pipes[other]])
        programs.append(begun(folder, way, last + 1, IN_A_STEP=TAKES_TURNS, TURNS=takes_turns))
    assert [program.wait() for program in programs] == [0, 0]
    read = {way: [[float(word) for word in line.split()] for line in (folder / way / "turns").open()] for way in pipes}
    for name, at in (("by the clock", 0), ("of processor time", 1)):
        took = {way: [end[at] - begin[at + 2] for begin, end in itertools.pairwise(marks)] for way, marks in read.items()}
        ratios = [guarded / alone - 1 for alone, guarded in zip(*took.values(), strict=True)]
        draw = random.Random(0)
        medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
        alone, guarded = (statistics.median(found) / TURN * 1000 for found in took.values())
        print(
            f"a step {name}: {alone:.2f} ms alone, {guarded:.2f} ms guarded; median of {len(ratios)} ratios "
            f"{statistics.median(ratios):+.1%} ({medians[25]:+.1%} to {medians[974]:+.1%} by bootstrap)"
        )


if __name__ == "__main__":
    main()
