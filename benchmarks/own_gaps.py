"""What a program with Hugging Face's Trainer gets where it went without before: the tables of docs/own-programs.md.

    python benchmarks/own_gaps.py [orders] [launchers] [ends] [damage] [resume]
    python benchmarks/own_gaps.py [module] [accelerate] [torchrun] … [early] [jit] [often] [never] [large] [ranked]

*Orders*: an unchanged script under `memsup start --`: seen, held, released, saved, stopped, killed. *Launchers*: the same
script behind what starts it, the process that trains killed, all stopped and started. *Ends*: one that
ends early, dies often, wants more memory than it may have, or trains in two ranks of which one dies. *Damage*:
the newest of two checkpoints is damaged between two lives; Trainer by itself, told to go on from the newest, beside Trainer
under memsup. *Resume*: killed in the middle of an epoch and begun again, both ways. Weights and each number of the
log are compared with a training that was left alone. Prints Markdown. The second line names each of
the launchers, and of the ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit import trainer_program
from kit.cli_process import end_supervisors, memsup
from kit.nursery import Nursery
from kit.run_state import ledger, status, step_of, until
from kit.trainer_program import BornLives, differences

RESUMES = "trainer.train(resume_from_checkpoint=any('checkpoint-' in each for each in os.listdir(f'out{number}')) or None)"
OVER = {"finished", "failed", "stopped"}
MIB = 1 << 20


def main() -> None:
    parts = {"orders": orders, "launchers": launchers, "ends": ends, "damage": damage, "resume": resume}
    named = sys.argv[1:] or list(parts)
    with tempfile.TemporaryDirectory(prefix="gaps-", dir="/tmp") as folder:
        for name in named:
            if name in LAUNCHERS:
                launched(name, Path(folder))
            else:
                (parts | ENDS)[name](Path(folder))


# --------------------------------------------------------------------------------------------------------------------
# Orders


def orders(folder: Path) -> None:
    os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/s", "MEMSUP_RUNTIME_DIR": f"{folder}/r"}
    home = folder / "orders"
    home.mkdir()
    quick = trainer_program.QUIET | {"KIND": "masked", "STEP_S": "0", "ROWS": "400", "ARGUMENTS": '{"num_train_epochs": 2}'}
    alone = trainer_program.undisturbed(folder / "orders-alone", **quick)
    print("| a person does | and gets |\n|---|---|")
    try:
        slow = quick | {"STEP_S": "0.05"}
        started = memsup("start", "-d", "--", *trainer_program.write_program(home), cwd=home, **slow)
        assert started.returncode == 0, started.stderr
        row("`start`", " ".join(started.stdout.split()))
        seen = trained_beyond(2)
        of = seen["progress"]
        shown = {name: of[name] for name in ("phase", "step", "total_steps", "loss", "eta_s")}
        row("`status`", f"{json.dumps(shown)}, its parts {json.dumps(seen['batch'])}, by {seen['program']['seam']}")

        memsup("pause")
        busy = cpu_s(seen["worker_pid"])
        time.sleep(2)
        row(
            "`pause`, and 2 s later",
            f"{cpu_s(seen['worker_pid']) - busy:.2f} s of processor time used, state {status()['state']}",
        )
        memsup("resume")

        saved = memsup("checkpoint")
        verified = memsup("checkpoint", "--verify", saved.stdout.strip())
        row(
            "`checkpoint`", f"exit {saved.returncode}, {Path(saved.stdout.strip()).name}; `--verify` exit {verified.returncode}"
        )

        held = rss(seen["worker_pid"])
        released = memsup("pause", "--release")
        now = status()
        row(
            "`pause --release`", f"exit {released.returncode}, {held / MIB:.0f} MiB given back, its process {now['worker_pid']}"
        )
        memsup("resume")

        step = step_of(trained_beyond(step_of(now) + 1))
        stopped = memsup("stop")
        at = status()
        saved_at, code = at["checkpoint"]["step"], at["exit_code"]
        row(f"`stop` in step {step + 1}", f"exit {stopped.returncode}, {at['state']}, exit code {code}, saved at {saved_at}")
        memsup("start", "-d", **slow)
        seen = until(lambda seen: seen["state"] in OVER or (attached(seen) and step_of(seen) > 0), 60)
        row("`start` again", f"goes on at step {step_of(seen)}")

        memsup("checkpoint")
        seen = trained_beyond(step_of(seen) + 1)
        os.kill(seen["worker_pid"], signal.SIGKILL)
        again = until(lambda now: now["restarts"] == 1 and attached(now) and now["worker_pid"] != seen["worker_pid"], 60)
        told = [event for event in ("death", "recovered") if event in {line["event"] for line in ledger()}]
        row(f"`kill -9` in step {step_of(seen) + 1}", f"goes on at step {step_of(again)}; in the ledger: {', '.join(told)}")

        ended = until(lambda seen: seen["state"] in OVER, 120)
        found = differences(alone, home) or "the same bits, log and checkpoints"
        row("its end", f"{ended['state']} at step {step_of(ended)} of {ended['progress']['total_steps']}; {found}")
    finally:
        end_supervisors()


# --------------------------------------------------------------------------------------------------------------------
# Launchers


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=1"]
LAUNCHERS = {
    "module": ("`python -m train`", ["{python}", "-m", "train"]),
    "accelerate": (
        "`accelerate launch train.py`",
        ["{python}", "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "train.py"],
    ),
    "torchrun": ("`torchrun --nproc-per-node=1 train.py`", ["{python}", *TORCHRUN, "train.py"]),
    "torchrun-again": ("the same with `--max-restarts=2`", ["{python}", *TORCHRUN, "--max-restarts=2", "train.py"]),
    "shell": ("`bash train.sh`, which calls python", ["bash", "-c", "{python} train.py; code=$?; echo over; exit $code"]),
}


def launchers(folder: Path) -> None:
    print("\n| started by | attached | its training killed | `stop`, `start` | its end |\n|---|---|---|---|---|")
    for name in LAUNCHERS:
        launched(name, folder)


def launched(name: str, folder: Path) -> None:
    """The process that trains is killed, and not what has launched it; then all is stopped and started."""
    quick = trainer_program.QUIET | {"KIND": "masked", "STEP_S": "0", "ROWS": "200"}
    alone = folder / "launched-alone"
    if not alone.exists():
        trainer_program.undisturbed(alone, **quick)
    slow = quick | {"STEP_S": "0.05", "IN_A_STEP": "open('pid', 'w').write(str(os.getpid()))"}
    os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/{name}-s", "MEMSUP_RUNTIME_DIR": f"{folder}/{name}-r"}
    home = folder / f"launched-{name}"
    home.mkdir()
    python, _ = trainer_program.write_program(home)
    shown, words = LAUNCHERS[name]

    def trains(seen: Any, but: int = 0) -> bool:
        return attached(seen) and step_of(seen) > 2 and int((home / "pid").read_text() or but) != but

    try:
        started = memsup("start", "-d", "--", *(word.format(python=python) for word in words), cwd=home, **slow)
        assert started.returncode == 0, started.stderr
        seen = until(lambda seen: seen["state"] in OVER or trains(seen), 120)
        cells = [f"by its {seen['program']['seam']}" if attached(seen) else "no"]
        memsup("checkpoint")
        pid, at = int((home / "pid").read_text()), step_of(status())
        os.kill(pid, signal.SIGKILL)
        again = until(lambda seen: seen["state"] in OVER or trains(seen, pid), 120)
        cells.append(f"in step {at + 1}, goes on at {step_of(again)}; {again['restarts']} restarts by memsup")
        pid = int((home / "pid").read_text())
        memsup("stop")
        stopped = status()
        memsup("start", "-d", **slow)
        seen = until(lambda seen: seen["state"] in OVER or trains(seen, pid), 120)
        cells.append(f"{stopped['state']} at step {stopped['checkpoint']['step']}, goes on at {step_of(seen)}")
        ended = until(lambda seen: seen["state"] in OVER, 240)
        row(shown, *cells, f"{end_of(ended)}, {what_differs(alone, home)}")
    finally:
        end_supervisors()


# --------------------------------------------------------------------------------------------------------------------
# Ends


ONCE = "if self.state.global_step == {step} and not os.path.exists('{name}'):\n    open('{name}', 'w').close()\n    {does}\n"
DIES = "os.kill(os.getpid(), 9)"


QUICKLY = trainer_program.QUIET | {"STEP_S": "0", "MEMSUP_CHECKPOINT_EVERY": "0.01s"}


def ends(folder: Path) -> None:
    print("\n| what happens | and what comes of it |\n|---|---|")
    for end in ENDS.values():
        end(folder)


def early(folder: Path) -> None:
    ends_early = QUICKLY | {"IN_A_STEP": ONCE.format(step=5, name="ended", does="sys.exit(0)")}
    home, first = run_to_its_end(folder, "early", **ends_early)
    memsup("start", "--wait", **ends_early)
    row(
        "exit code 0 with steps left",
        f"{end_of(first)}; `start` again: {end_of(status())}, {what_differs(left_alone(folder), home)}",
    )


def jit(folder: Path) -> None:
    """Trainer's own answer to SIGTERM, which lets the script go on as if it were through."""
    environment = QUICKLY | {"ARGUMENTS": json.dumps({"enable_jit_checkpoint": True}), "STEP_S": "0.05"}
    os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/jit-s", "MEMSUP_RUNTIME_DIR": f"{folder}/jit-r"}
    home = folder / "ends-jit"
    home.mkdir()
    started = memsup("start", "-d", "--", *trainer_program.write_program(home), cwd=home, **environment)
    assert started.returncode == 0, started.stderr
    trained_beyond(4)
    memsup("stop")
    stopped = status()
    memsup("start", "--wait", within_s=1000, **environment)
    row(
        "`--enable_jit_checkpoint`, and `stop`",
        f"{stopped['state']}, exit code {stopped['exit_code']}, saved at step {stopped['checkpoint']['step']}; `start` again: "
        f"{end_of(status())}, {what_differs(left_alone(folder), home)}",
    )


def often(folder: Path) -> None:
    dies = "".join(ONCE.format(step=step, name=f"died{step}", does=DIES) for step in range(1, 15, 2))
    home, last = run_to_its_end(folder, "often", IN_A_STEP=dies, **QUICKLY)
    differs = what_differs(left_alone(folder), home)
    row(f"{last['restarts']} deaths, each after a newer checkpoint", f"{end_of(last)}, {differs}")


def never(folder: Path) -> None:
    dies = "if self.state.global_step == 5: os.kill(os.getpid(), 9)"
    _, last = run_to_its_end(folder, "never", IN_A_STEP=dies, **QUICKLY)
    row("each life dies in the same step", f"{end_of(last)} after {last['restarts']} restarts")


def large(folder: Path) -> None:
    shape = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "intermediate_size": 4096, "hidden_size": 64}
    arguments = {"per_device_train_batch_size": 512, "gradient_accumulation_steps": 1, "num_train_epochs": 1}
    environment = QUICKLY | {"ROWS": "1024", "SHAPE": json.dumps(shape), "ARGUMENTS": json.dumps(arguments)}
    alone = trainer_program.undisturbed(folder / "large-alone", **environment)
    home, last = run_to_its_end(folder, "large", "--set", "limits.ram=560MiB", **environment)
    ran_out = sum(line["event"] == "out_of_memory" for line in ledger())
    row(
        "`limits.ram=560MiB`, which a batch exceeds",
        f"ran out {ran_out} times within the program, {last['restarts']} deaths, {last['batch']['micro_rows']} rows of "
        f"{last['batch']['effective']} at a time, {end_of(last)}, weights differ by {most_difference(alone, home):.1e} at most",
    )


def ranked(folder: Path) -> None:
    dies = ONCE.format(step=5, name="died", does=f"if os.environ['RANK'] == '1': {DIES}")
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2"]
    _, last = run_to_its_end(folder, "ranked", launcher=torchrun, IN_A_STEP=dies, **QUICKLY)
    told = [line["event"] for line in ledger() if line["event"] in {"death", "recovered", "rank_died", "attached"}]
    row(
        "`torchrun` with two ranks, one dies",
        f"attached: {bool(last['program'] and last['program']['attached'])}; {last['restarts']} restarts, in the ledger: "
        f"{', '.join(told) or 'nothing'}; {end_of(last)}",
    )


ENDS: dict[str, Callable[[Path], None]] = {
    "early": early,
    "jit": jit,
    "often": often,
    "never": never,
    "large": large,
    "ranked": ranked,
}


def left_alone(folder: Path) -> Path:
    """The training that nobody disturbs, without memsup."""
    home = folder / "ends-alone"
    return home if home.exists() else trainer_program.undisturbed(home, **QUICKLY)


def run_to_its_end(
    folder: Path, name: str, *options: str, launcher: Sequence[str] = (), **environment: str
) -> tuple[Path, Any]:
    """A run of the script that nobody disturbs from outside: its folder, and its last status."""
    os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/{name}-s", "MEMSUP_RUNTIME_DIR": f"{folder}/{name}-r"}
    home = folder / f"ends-{name}"
    home.mkdir()
    python, *script = trainer_program.write_program(home)
    words = ["start", "--wait", *options, "--", python, *launcher, *script]
    started = memsup(*words, cwd=home, within_s=1000, **environment)
    assert status() is not None, started.stderr
    return home, status()


def end_of(seen: Any) -> str:
    return f"{seen['state']} at step {step_of(seen)} of {seen['progress']['total_steps']}"


def what_differs(alone: Path, home: Path) -> str:
    return ", ".join(each for each in differences(alone, home) if not each.startswith("out")) or "the same bits and log"


def most_difference(alone: Path, home: Path) -> float:
    import torch

    first, second = torch.load(alone / "weights1.pt"), torch.load(home / "weights1.pt")
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def attached(seen: Any) -> bool:
    return bool(seen["program"] and seen["program"]["attached"])


def trained_beyond(step: int) -> Any:
    return until(lambda seen: attached(seen) and seen["state"] == "running" and step_of(seen) > step, 60)


def cpu_s(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:2])


def rss(pid: int) -> int:
    return sum(each.memory_info().rss for each in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)])


# --------------------------------------------------------------------------------------------------------------------
# Damage, and going on in the middle of an epoch


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def without(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


DAMAGE: dict[str, Callable[[Path], None]] = {
    "one bit of `model.safetensors`": lambda folder: flip(folder / "model.safetensors"),
    "one bit of `optimizer.pt`": lambda folder: flip(folder / "optimizer.pt"),
    "`optimizer.pt`, `scheduler.pt` missing": without("optimizer.pt", "scheduler.pt"),
    "`trainer_state.json` missing": without("trainer_state.json"),
    "`model.safetensors` cut in half": lambda folder: cut(folder / "model.safetensors"),
}


def damage(folder: Path) -> None:
    print("\n| of the newest checkpoint | Trainer with `resume_from_checkpoint=True` | under memsup |\n|---|---|---|")
    dies = {"IN_A_STEP": "if self.state.global_step == 14: os.kill(os.getpid(), 9)"}
    with Nursery("trainer") as nursery:
        lives = BornLives(nursery, folder)
        alone = lives.whole("damage", guarded=False)
        for what, hurt in DAMAGE.items():
            found = []
            for way in ("itself", "memsup"):
                name = f"{what} {way}".replace("/", "")
                assert begun(lives, name, way, **dies) == -9
                kept = lives.folder / f"{name}-kept" / "step-00000014"
                hurt(kept if way == "memsup" else lives.folder / name / "out1" / "checkpoint-14")
                status = begun(lives, name, way)
                aside = way == "memsup" and kept.with_name(f"damaged-{kept.name}").exists()
                found.append(
                    outcome(lives, alone, name, status) + (", it is set aside and the one before is used" if aside else "")
                )
            row(what, *found)


def resume(folder: Path) -> None:
    print("\n| killed in the middle of an epoch | Trainer with `resume_from_checkpoint=True` | under memsup |\n|---|---|---|")
    dies = {"IN_A_STEP": "if self.state.global_step == 9: os.kill(os.getpid(), 9)"}
    kinds = {"labels": "classes", "masked words": "masked", "a data set without a length": "stream"}
    with Nursery("trainer") as nursery:
        lives = BornLives(nursery, folder)
        for what, kind in kinds.items():
            more = {"KIND": kind, "ARGUMENTS": json.dumps({"max_steps": 15})}
            alone = lives.whole(f"{what} alone", guarded=False, **more)
            found = []
            for way in ("itself", "memsup"):
                name = f"{what} {way}"
                assert begun(lives, name, way, **more, **dies) == -9
                found.append(outcome(lives, alone, name, begun(lives, name, way, **more)))
            row(what, *found)


def begun(lives: BornLives, name: str, way: str, **environment: str) -> int:
    """One life of the program; by itself Trainer is told to go on where there is something."""
    whole = trainer_program.PROGRAM
    if way == "itself":
        trainer_program.PROGRAM = whole.replace("trainer.train()", RESUMES)
    try:
        return lives.begin(name, guarded=way == "memsup", **environment).wait(60)
    finally:
        trainer_program.PROGRAM = whole


def outcome(lives: BornLives, alone: Path, name: str, status: int) -> str:
    home = lives.folder / name
    if status != 0:
        return f"ends with {(home / 'printed').read_text().strip().splitlines()[-1].split(':')[0]}"
    other = [each for each in differences(alone, home) if not each.startswith("out")]  # what is saved for the user aside
    if not other:
        return "the same bits"
    weights = sum(each.startswith("weights") for each in other)
    return f"goes on without a word, and ends with other weights ({weights} tensors)" if weights else "another log"


if __name__ == "__main__":
    main()
