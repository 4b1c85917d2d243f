"""Unchanged training scripts of others under memsup: limited, killed, paused with release, stopped and started
(docs/own-programs.md).

    python benchmarks/own_scripts.py FOLDER --python PYTHON --examples EXAMPLES [--only NAME …] [--kills 20] [-- COMMAND …]
    python benchmarks/own_scripts.py FOLDER --table
    python benchmarks/own_scripts.py FOLDER --tensors --only NAME …

PYTHON is an interpreter that has torch, transformers, accelerate, datasets, evaluate, seqeval, trl, peft, lightning and
sentence-transformers, as far as the scripts named need them, and nothing of memsup. EXAMPLES has Hugging Face's examples
`run_classification.py`, `run_clm.py`, `run_ner.py`, `run_qa.py` with what they import; they are fetched to be run only.
Models, tokenizer, data and the metrics that the examples ask a hub for are made here, small; nothing drops out, one thread.

Each script is run three times. *Alone*, which says how much memory it takes and which weights it ends with. *Free*, under
memsup with all the memory it wants. *Limited*, to a share of that. The last two are killed with SIGKILL at random instants,
paused with `--release`, stopped and started, and have to end at their last step; what they end with is compared.

All of it lies in FOLDER, `results.jsonl` too, which gets a line for each run that is through. What is there is not done
again, and with `--most-s` a call that is out of time stops the run it is at (exit code 3); the next one goes on with that. A
COMMAND of your own has `{out}` where its results go, and is run in an empty folder; weights are compared where it leaves
`{out}/*.safetensors` or `{out}/*.pt`.

In the run that is alone torch's optimizers are watched for the largest gradient that each tensor ever has. One that never
exceeds `ROUNDING` of the model's largest is zero but for rounding; Adam divides by its size and makes steps of it all the same.
So what the others differ by is told as well; `--tensors` prints all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from own_script_sets import ASSETS, METRICS, NOT_CUT, OWN, QUIET, SCRIPTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.cli_process import end_supervisors, memsup  # noqa: E402
from kit.run_state import ledger, status, step_of, until  # noqa: E402

MIB = 1 << 20
OVER = {"finished", "failed", "stopped"}
IN_TRAINING = 0.5
"""The part of the kills that come while it trains; the others come at whatever it is, its imports mostly."""
MOST_BEGUN_AGAIN = 20
BAR = 1e-5
"""A larger difference is told with the weight that has it."""
ROUNDING = 1e-6
"""The part of the largest gradient of a model below which a tensor's own is nothing but rounding."""


class OutOfTimeError(Exception):
    """This call has no time left."""


@dataclass
class Run:
    """One script under memsup, as it is kept from one call to the next."""

    script: str
    way: str
    kills_wanted: int
    wants_bytes: int
    limit_bytes: int = 0
    """It is 0 where memory is not limited."""
    kills: int = 0
    kills_in_training: int = 0
    begun_again: int = 0
    """How often it was given up, so often was it killed, and begun again by a person's `memsup start`."""
    held_bytes: int = 0
    """What its processes held before it was released. It is 0 where it was not."""
    left_bytes: int = 0
    """What they held afterwards."""
    release_failed: list[str] = field(default_factory=list)
    stopped_at: int = -1
    """The step at which it was stopped; -1 where it was not."""
    went_on_at: int = -1
    died_for_memory: int = 0
    """How often memsup, or the kernel at its fence, killed it."""
    parts_made_smaller: int = 0
    """How often memory ran out within the program and its batches were computed in smaller parts."""
    state: str = ""
    step: int = 0
    steps: int = 0
    largest_difference: float = -1.0
    """The largest difference of a weight from the one it ends with alone."""
    where: str = ""
    """The name of that weight, and the largest difference of any other one."""
    largest_with_gradient: float = -1.0
    """The largest difference of a weight whose gradient is more than rounding; -1 where no gradients were seen."""
    took_s: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="print the results that are there as Markdown, and run nothing")
    parser.add_argument("--tensors", action="store_true", help="print what each tensor of --only differs by, and run nothing")
    parser.add_argument("--only", nargs="*", help=", ".join(SCRIPTS))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--examples", default=".")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kills-free", type=int, default=20, help="of the run whose memory is not limited")
    parser.add_argument("--share", type=int, default=60, help="of the memory that it wants, in percent; 0: not limited")
    parser.add_argument("--most-s", type=float, default=1e9, help="stop a call after so long")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--not-free", action="store_true", help="leave out the run that is not limited")
    given = sys.argv[1:]
    own = given[given.index("--") + 1 :] if "--" in given else []
    options = parser.parse_args(given[: given.index("--")] if own else given)
    options.folder = options.folder.absolute()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.ends_s = time.monotonic() + options.most_s
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    if options.table:
        print_table(options.folder / "results.jsonl")
        return 0
    if options.tensors:
        for name in options.only:
            print_tensors(options.folder / folder_of(name))
        return 0
    commands = {name: shlex.split(f"{options.python} {SCRIPTS[name]}") for name in options.only or ([] if own else SCRIPTS)}
    if own:
        commands["yours"] = own
    os.environ |= QUIET | {"HF_HOME": str(options.folder / "hub")}
    assets = options.folder / "assets"
    if not own and not (assets / "whole").exists():
        make_assets(assets, options.python)
    try:
        for name, command in commands.items():
            prove(name, command, assets if name in SCRIPTS else options.folder / name, options)
    except OutOfTimeError:
        return 3
    return 0


def make_assets(assets: Path, python: str) -> None:
    assets.mkdir(exist_ok=True)
    for name, program in OWN.items():
        (assets / name).write_text(program)
    for name, metric in METRICS.items():
        (assets / name).mkdir(exist_ok=True)
        (assets / name / f"{name}.py").write_text(metric)
    subprocess.run([python, "-c", ASSETS], cwd=assets, check=True)
    (assets / "whole").touch()


def prove(name: str, command: list[str], place: Path, options: argparse.Namespace) -> None:
    own = options.folder / folder_of(name)
    own.mkdir(exist_ok=True)
    place.mkdir(exist_ok=True)

    def told(out: str) -> list[str]:
        values = {"out": str(own / out), "examples": str(Path(options.examples).absolute()), "steps": str(options.steps)}
        return [word.format(**values) for word in command]

    wants = own / "wants"
    if not wants.exists():
        wants.write_text(str(alone(told("alone"), place, own)))
    wants_bytes = int(wants.read_text())
    for share in (() if options.not_free else (0,)) + ((options.share,) if options.share and name not in NOT_CUT else ()):
        kept = own / ("limited.json" if share else "free.json")
        if kept.exists():
            run = Run(**json.loads(kept.read_text()))
        else:
            kills = options.kills if share or name in NOT_CUT else options.kills_free
            run = Run(name, kept.stem, kills, wants_bytes, wants_bytes * share // 100)
        if run.state:
            continue
        guarded(run, told(kept.stem), place, own / kept.stem, kept, options)
        compare(run, own, own / kept.stem, options.python)
        kept.write_text(json.dumps(asdict(run)))
        with open(options.folder / "results.jsonl", "a") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        print(row(run), flush=True)


def folder_of(name: str) -> str:
    return name.replace(" ", "-")


WATCH = """
import atexit, importlib.util, os
if importlib.util.find_spec("torch"):
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    largest = {}
    def look(optimizer, *_):
        for weight in (weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None):
            size = max(weight.grad.abs().max().item(), largest.get(id(weight), (weight, 0.0))[1])
            largest[id(weight)] = weight, size
    register_optimizer_step_pre_hook(look)
    def leave():
        if largest:
            torch.save([(weight.detach(), size) for weight, size in largest.values()], os.environ["GRADIENTS"])
    atexit.register(leave)
"""
"""As `sitecustomize` it writes the largest gradient that each weight ever had, with the weight itself, by which it is known."""


def alone(command: list[str], place: Path, own: Path) -> int:
    """Runs a command by itself, with a `memsup` that does nothing but train; returns the most memory it had, in bytes."""
    watch, log = own / "watch", own / "alone.log"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH)
    with open(log, "wb") as printed:
        process = subprocess.Popen(
            command,
            cwd=place,
            env=os.environ | {"PYTHONPATH": f"{watch}:{ROOT / 'build' / 'links'}", "GRADIENTS": str(own / "gradients")},
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            _, code, used = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert code == 0, log.read_text()[-4000:]
    return used.ru_maxrss * 1024


# --------------------------------------------------------------------------------------------------------------------
# Under memsup


def guarded(run: Run, command: list[str], place: Path, own: Path, kept: Path, options: argparse.Namespace) -> None:
    """Runs a command under memsup, or goes on with it: killed at random, paused with release, stopped and started."""
    os.environ |= {"MEMSUP_STATE_DIR": f"{own}-state", "MEMSUP_RUNTIME_DIR": f"{own}-run", "MEMSUP_CHECKPOINT_EVERY": "1s"}
    began_s, draw = time.monotonic(), random.Random(f"{options.seed} {run.script} {run.way} {run.kills}")
    if kept.exists():
        memsup("start", "-d")
    else:
        setting = ["--set", f"limits.ram={run.limit_bytes // MIB}MiB"] if run.limit_bytes else []
        ran = memsup("start", "-d", *setting, "--", *command, cwd=place)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    try:
        while run.kills < run.kills_wanted and not is_over(run):
            disturb(run, draw, options)
            keep(run, kept, began_s)
            began_s = time.monotonic()
        while not is_over(run):
            within(options, lambda seen: seen["state"] in OVER)
    finally:
        if not is_over(run):
            memsup("stop")
        end_supervisors()
        keep(run, kept, began_s)
    seen, lines = status(), ledger()
    run.state, run.step, run.steps = seen["state"], step_of(seen), seen["progress"]["total_steps"] or 0
    run.parts_made_smaller = sum(line["event"] == "out_of_memory" for line in lines)
    run.died_for_memory = sum(line["event"] == "death" and line.get("cause") == "memory" for line in lines)
    if run.state != "finished":
        print(memsup("logs", "--worker").stdout[-3000:], memsup("status").stdout, file=sys.stderr)


def keep(run: Run, kept: Path, began_s: float) -> None:
    run.took_s += time.monotonic() - began_s
    kept.write_text(json.dumps(asdict(run)))


def within(options: argparse.Namespace, wanted: Callable[[Any], Any]) -> Any:
    """The first status for which `wanted` holds. Raises `OutOfTimeError`."""
    seen = until(lambda seen: wanted(seen) or time.monotonic() > options.ends_s, 1e9)
    if time.monotonic() > options.ends_s:
        raise OutOfTimeError
    return seen


def is_over(run: Run) -> bool:
    """Whether nothing is left to do. What is given up, so often was it killed without a newer checkpoint, is begun again."""
    state = status()["state"]
    if state in {"failed", "stopped"} and run.begun_again < MOST_BEGUN_AGAIN:
        run.begun_again += 1
        memsup("start", "-d")
        return False
    return state in OVER


def disturb(run: Run, draw: random.Random, options: argparse.Namespace) -> None:
    if run.kills >= run.kills_wanted // 3 and not run.held_bytes and len(run.release_failed) < 5:
        release(run, options)
    elif run.kills >= 2 * run.kills_wanted // 3 and run.stopped_at < 0:
        stop_and_start(run, options)
    else:
        kill(run, draw, options)


def kill(run: Run, draw: random.Random, options: argparse.Namespace) -> None:
    """At the drawn instant: mostly soon after a step was done, so that it gets on, else at whatever it is by then. At once
    where it has come so far that the kills that are left would no longer fit in.
    """
    begins, share = status(), (run.kills + 1) / (run.kills_wanted + 1)
    if draw.random() < IN_TRAINING:
        within(options, lambda seen: seen["state"] in OVER or step_of(seen) > step_of(begins))
        ends_s = time.monotonic() + draw.uniform(0, 2)
    else:
        ends_s = time.monotonic() + draw.uniform(0, 10)
    seen = within(
        options,
        lambda seen: (
            seen["state"] in OVER
            or (seen["worker_pid"] and (time.monotonic() > ends_s or step_of(seen) >= share * options.steps))
        ),
    )
    if seen["state"] in OVER:
        return
    with suppress(ProcessLookupError):
        os.kill(seen["worker_pid"], signal.SIGKILL)
        run.kills += 1
        run.kills_in_training += seen["progress"]["phase"] in {"training", "saving", "evaluating"}
        within(options, lambda now: now["state"] in OVER or now["worker_pid"] != seen["worker_pid"])


def processes() -> list[psutil.Process]:
    """What the supervisor has below it and is none of its own parts: the program and what it has started."""
    pid = status()["worker_pid"]
    with suppress(psutil.NoSuchProcess):
        return [] if pid is None else [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return []


def release(run: Run, options: argparse.Namespace) -> None:
    """Where it dies at that moment, for memory say, it is asked again later."""
    seen = within(
        options,
        lambda seen: (
            seen["state"] in OVER
            or (seen["state"] == "running" and seen["progress"]["phase"] == "training" and step_of(seen) > 0)
        ),
    )
    if seen["state"] in OVER:
        return
    before = processes()
    held_bytes = sum(process.memory_info().rss for process in before)
    released = memsup("pause", "--release", within_s=200)
    if released.returncode == 0 and before:
        run.held_bytes = held_bytes
        run.left_bytes = sum(process.memory_info().rss for process in {*before, *processes()} if process.is_running())
    else:
        run.release_failed.append(released.stdout + released.stderr)
    memsup("resume")


def stop_and_start(run: Run, options: argparse.Namespace) -> None:
    within(options, lambda seen: seen["state"] in OVER or (seen["state"] == "running" and step_of(seen) > 0))
    stopped = memsup("stop", within_s=200)
    if status()["state"] != "stopped":
        print(stopped.stdout + stopped.stderr, file=sys.stderr)
        return
    run.stopped_at = step_of(status())
    memsup("start", "-d")
    seen = within(
        options, lambda seen: seen["state"] in OVER or (seen["worker_pid"] and seen["progress"]["phase"] == "training")
    )
    run.went_on_at = step_of(seen)


# --------------------------------------------------------------------------------------------------------------------
# What came of it


COMPARE = """
import glob, json, os, sys
import torch
from safetensors.torch import load_file

def weights(folder):
    found = {}
    for path in sorted(glob.glob(folder + "/*.safetensors") + glob.glob(folder + "/*.pt")):
        found |= load_file(path) if path.endswith("s") else torch.load(path)
    return found

own, other = sys.argv[1:]
one, other = weights(own + "/alone"), weights(other)
assert one.keys() == other.keys() and one, (len(one), len(other))
seen = torch.load(own + "/gradients") if os.path.exists(own + "/gradients") else []
found = {}
for name in one:
    difference = 0.0 if torch.equal(one[name], other[name]) else (one[name] - other[name]).abs().max().item()
    found[name] = difference, max((size for weight, size in seen if torch.equal(weight, one[name])), default=None)
print(json.dumps(found))
"""


def compare(run: Run, own: Path, ended: Path, python: str) -> None:
    done = subprocess.run([python, "-c", COMPARE, own, ended], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        run.where = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        return
    ended.with_name(f"{ended.name}-tensors.json").write_text(done.stdout)
    found: dict[str, tuple[float, float | None]] = json.loads(done.stdout)
    (name, (run.largest_difference, gradient)), *others = sorted(found.items(), key=lambda of: -of[1][0])
    if run.largest_difference > 0:
        run.where = f"{name}; any other {max([differs for _, (differs, _) in others], default=0):.1e}"
    real = with_gradient(found)
    if real:
        run.largest_with_gradient = max(differs for differs, _ in real.values())
        if name not in real:
            run.where = f"{name}, whose gradient is rounding (at most {gradient:.0e})"


def with_gradient(found: dict[str, tuple[float, float | None]]) -> dict[str, tuple[float, float | None]]:
    """Those of the tensors whose gradient is more than rounding."""
    largest = max((gradient for _, gradient in found.values() if gradient is not None), default=0)
    return {name: of for name, of in found.items() if of[1] is not None and of[1] > ROUNDING * largest}


def row(run: Run) -> str:
    def mib(count: int) -> str:
        return f"{count / MIB:,.0f} MiB"

    differs = {0.0: "none, bit for bit", -1.0: f"not known: {run.where}"}.get(run.largest_difference)
    cells = [
        run.script,
        mib(run.wants_bytes),
        mib(run.limit_bytes) if run.limit_bytes else "–",
        f"{run.kills}, {run.kills_in_training} of them in training",
        f"{run.died_for_memory}" if run.limit_bytes else "–",
        f"{run.parts_made_smaller}" if run.limit_bytes else "–",
        f"{run.state}, step {run.step} of {run.steps}",
        differs or f"{run.largest_difference:.1e}" + (f" of {run.where}" if run.largest_difference > BAR else ""),
        f"{run.largest_with_gradient:.1e}" if run.largest_with_gradient > 0 else "–",
        f"{mib(run.held_bytes - run.left_bytes)} of {mib(run.held_bytes)}" if run.held_bytes else "–",
        f"{run.stopped_at} → {run.went_on_at}" if run.stopped_at >= 0 else "–",
    ]
    return f"| {' | '.join(cells)} |"


def print_table(results: Path) -> None:
    print(
        "| script | wants | limit | killed | killed by memsup for memory | ran out within | ended "
        "| largest difference of a weight | of one with a gradient | released | stopped, went on |"
    )
    print("|" + "---|" * 11)
    for line in results.read_text().splitlines():
        print(row(Run(**json.loads(line))))


def print_tensors(own: Path) -> None:
    """What each tensor ends away from where it ends alone, and the largest gradient that it ever had."""
    for kept in sorted(own.glob("*-tensors.json")):
        found: dict[str, tuple[float, float | None]] = json.loads(kept.read_text())
        real = with_gradient(found)
        print(
            f"\n{own.name}, {kept.name.removesuffix('-tensors.json')}\n\n| tensor | largest gradient | differs by |"
            "\n|---|---|---|"
        )
        for name, (differs, gradient) in sorted(found.items(), key=lambda of: -of[1][0]):
            size = "not seen" if gradient is None else f"{gradient:.1e}{'' if name in real else ', rounding'}"
            print(f"| {name} | {size} | {differs:.1e} |")


if __name__ == "__main__":
    sys.exit(main())
