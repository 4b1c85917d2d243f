"""Trainings with Hugging Face's Trainer that are killed at random instants, and the bits that they end with
(docs/own-programs.md).

    python benchmarks/own_kills.py [--kills 200] [--seed N]

Each life is a process of its own, forked from one that has imported torch and transformers, and is killed with SIGKILL at an
instant drawn evenly over what a life lasts; the next one goes on. Checkpoints are made at each boundary, or as often as drawn,
so many an instant lies within a save, and others in the middle of a window. Each training is killed up to ten times, then left
to end, and compared with one that memsup has nothing to do with: weights, and each number of its log. All train with dropout,
shuffled, and three micro-batches to a step. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit.nursery import Nursery
from kit.trainer_program import BornLives, differences

KINDS = {
    "classes": {"KIND": "classes", "ROWS": "150"},
    "masked words": {
        "KIND": "masked",
        "ROWS": "150",
        "ARGUMENTS": json.dumps({"eval_strategy": "steps", "save_total_limit": 2}),
    },
    "iterable": {"KIND": "stream", "ROWS": "150", "ARGUMENTS": json.dumps({"max_steps": 30, "eval_strategy": "epoch"})},
}
KILLS_OF_ONE = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    options = parser.parse_args()
    print(f"Seed {options.seed}.")
    draw, different = random.Random(options.seed), 0
    kills, trainings = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    with tempfile.TemporaryDirectory(prefix="memsup-kills-", dir="/tmp") as folder, Nursery("trainer") as nursery:
        lives = BornLives(nursery, Path(folder))
        for kind, environment in KINDS.items():
            lives.whole("warm", guarded=False, **environment)
            began_s = time.monotonic()
            alone = lives.whole(kind, guarded=False, **environment)
            life_s = time.monotonic() - began_s
            while kills[kind] < options.kills / len(KINDS):
                trainings[kind] += 1
                name = f"{kind} {trainings[kind]}"
                kills[kind] += killed(lives, name, draw, life_s, environment)
                found = differences(alone, lives.folder / name)
                different += bool(found)
                print(f"{name}: {kills[kind]} kills so far, {found or 'the same bits'}", flush=True)
    print("\n| training | killed | trainings |\n|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {kills[kind]} | {trainings[kind]} |")
    print(f"\n{sum(kills.values())} kills of {sum(trainings.values())} trainings, {different} with other bits or another log.")
    return 1 if different else 0


def killed(lives: BornLives, name: str, draw: random.Random, life_s: float, environment: dict[str, str]) -> int:
    """A training that is killed as often as fits into it; returns how often that was."""
    every_s = draw.choice((0.0, 0.05, 0.2))
    for count in range(KILLS_OF_ONE):
        life = lives.begin(name, every_s=every_s, **environment)
        try:
            assert life.wait(draw.uniform(0, life_s)) == 0, (lives.folder / name / "printed").read_text()[-3000:]
            return count
        except TimeoutError:
            life.send_signal(9)
            life.wait(30)
    lives.whole(name, **environment)
    return KILLS_OF_ONE


if __name__ == "__main__":
    sys.exit(main())
