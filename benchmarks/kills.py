"""Bit-identity under fire: runs killed with SIGKILL at random instants, compared with one that was left alone.

    python benchmarks/kills.py [--kills 200] [--seed N] [--task NAME] [--ranks 2] [--back on|off | --lost | --machines]

Each run of the tiny job is killed up to ten times (worker, supervisor or both; with several ranks also one of the others, and
all the times in one run) and must end with exactly the weights, optimizer state and audit digest of the undisturbed run. Prints
a Markdown table of the kills and the verdict; exit code 1 if one differs.

`--task` has another task than the tiny job's: pairs, labels (several a text), scores, tags, chat (LoRA) or chat4 (beside
weights in four bits), on rows that are made up; each run is killed up to twenty times then, three in five times its worker
alone, for which a process stands by that has its libraries: importing them is most of what a kill costs.

With `--back` only workers are killed, while they train, in one long run, with a process that stands by (on) or without (off):
how long it takes from each kill to the next step that is done, how much work it cost, and what stands by took of the processor.

With `--lost` checkpoints are ten minutes apart, each step waits a twentieth of a second, since the machine is others' as well,
and the worker is killed up to 25 s after a state was kept in memory: how much work each kill cost, and whether what was done
again came to the same bits.

With `--machines` it is one long run on two machines (network namespaces, so it takes root): of each the worker, the supervisor
or both are killed, and the cable is pulled for 5 or 60 s, at random instants. The run has to end with the bits of one that two
machines computed undisturbed.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from kit import FAULTS
from kit.chat import dialogues, tiny_chat_model
from kit.cli_process import eventually, memsup
from kit.killed_runs import WAITED_S, Tally, disturbed, end_of, end_supervisors, make_job, undisturbed
from kit.run_state import ledger, status, until
from kit.two_machines import LOOK_EVERY_S, Machine, joined, missing, two_machines

from memsup.shared.paths import run_paths

BEGAN_S = time.monotonic()
SLOWLY = {"PYTHONPATH": str(FAULTS), "FAULT_STEP_S": "0.05"}
"""Each step waits a little, so that a run does not end before it was killed as often as it is to be."""
TASKS = ("pairs", "labels", "scores", "tags", "chat", "chat4")
ALL, MOSTLY_WORKERS = ("worker", "supervisor", "both", "rank"), (*["worker"] * 3, "supervisor", "both")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--back", choices=("on", "off"))
    parser.add_argument("--lost", action="store_true")
    parser.add_argument("--machines", action="store_true")
    options = parser.parse_args()
    print(f"Seed {options.seed}.", flush=True)
    draw, tally, runs, different = random.Random(options.seed), Tally(), 0, 0
    with tempfile.TemporaryDirectory(prefix="memsup-kills-") as folder:
        os.environ |= {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
        job = Path(folder) / "job"
        if options.back is not None:
            return back(job, draw, options.kills, options.back)
        if options.lost:
            return lost(job, draw, options.kills)
        if options.machines:
            return machines(Path(folder), draw, options.kills)
        is_alone = options.ranks == 1
        epochs, kills, lanes = (60, 10, 2) if is_alone else (10 + options.kills, options.kills, 1)
        if not is_alone:
            os.environ |= SLOWLY
        victims = ALL if options.task is None else MOSTLY_WORKERS
        if options.task is None:
            make_job(job, epochs=epochs, amp="auto", lanes=lanes, ranks=options.ranks)
        else:
            epochs, kills = 12, 20
            make_job_of(options.task, job, epochs=epochs)
        try:
            expected = undisturbed(job, "undisturbed")
            print(f"undisturbed after {time.monotonic() - BEGAN_S:.0f} s", flush=True)
            while tally.total < options.kills:
                runs += 1
                end = disturbed(job, f"run{runs}", draw, tally, kills=kills, longest_life_s=5.0, victims=victims)
                different += end != expected
                print(f"run {runs}: {tally.total} kills so far, {'the same bits' if end == expected else end}", flush=True)
        finally:
            end_supervisors()
    print("\n| killed | times |\n|---|---|")
    for victim, count in sorted(tally.kills.items()):
        print(f"| {victim} | {count} |")
    print("\n| while the worker was | times |\n|---|---|")
    for phase, count in sorted(tally.phases.items()):
        print(f"| {phase} | {count} |")
    took_s = time.monotonic() - BEGAN_S
    print(f"\n{runs} runs, {tally.total} kills, {different} with other bits than the undisturbed run; it took {took_s:.0f} s.")
    return 1 if different else 0


def machines(folder: Path, draw: random.Random, kills: int) -> int:
    """Disturbs one run on two machines so many times, and prints what came of it."""
    if (why_not := missing()) is not None:
        print(why_not)
        return 0
    ends, tally = [], Tally()
    os.environ |= SLOWLY
    for name in ("undisturbed", "disturbed"):
        home = folder / name
        home.mkdir()
        make_job(home / "job", epochs=10 + kills, every="1s", lanes=1)
        with two_machines(home) as both:
            joined(*both, home / "job", "nodes.wait=10m")
            if name == "disturbed":
                disturb(*both, draw, tally, kills)
            comes_to(*both, "finished")
            ends.append(end_of(both[0].paths()))
            events = Counter(line["event"] for machine in both for line in machine.ledger())
    for what, count in sorted(tally.kills.items()):
        print(f"{what}: {count}")
    print(f"Ledgers of both: {dict(sorted(events.items()))}")
    print(f"{tally.total} times disturbed, {'the same bits' if ends[0] == ends[1] else f'OTHER BITS: {ends}'}.")
    return int(ends[0] != ends[1])


def disturb(first: Machine, other: Machine, draw: random.Random, tally: Tally, kills: int) -> None:
    """Something happens to a machine or the cable, at a random instant, so many times or until the run is over."""
    while tally.total < kills:
        seen = comes_to(first, other, "running", "finished") if draw.random() < 0.75 else first.status()
        if seen is not None and seen["state"] == "finished":
            return
        time.sleep(draw.uniform(0, 3))
        machine, name = draw.choice([(first, "the first"), (other, "the other")])
        victim = draw.choice(["worker", "supervisor", "both", "cable"])
        if victim == "cable":
            pulled_s = draw.choice([*[5] * 7, 60])
            machine.plug(is_in=False)
            time.sleep(pulled_s)
            machine.plug(is_in=True)
            tally.kills[f"cable of {name} machine, {pulled_s} s"] += 1
        else:
            fields = {"worker": ["worker_pid"], "supervisor": ["pid"], "both": ["pid", "worker_pid"]}[victim]
            pids = machine.kill(*fields)
            tally.kills[f"{victim} of {name} machine"] += bool(pids)
            if victim != "worker":
                for pid in pids:
                    eventually(lambda pid=pid: not psutil.pid_exists(pid), WAITED_S)
                machine.tried("start", within_s=WAITED_S)
        step = ((first.status() or {}).get("progress") or {}).get("step")
        print(f"{time.monotonic() - BEGAN_S:5.0f} s, {tally.total:3}: {victim} of {name}, step {step}", flush=True)


def comes_to(first: Machine, other: Machine, *states: str) -> Any:
    """The status of the first machine in one of these states. Where a supervisor is gone, or has given up after so many deaths,
    it is started again, as a person would.
    """

    def look() -> Any:
        seen = first.status()
        if seen is None or seen["state"] != "finished":
            for machine in (first, other):
                if (machine.status() or {"state": "stopped"})["state"] in ("failed", "stopped"):
                    machine.tried("start", within_s=WAITED_S)
        return seen if seen is not None and seen["state"] in states else None

    return eventually(look, WAITED_S, every_s=LOOK_EVERY_S)


def make_job_of(task: str, job: Path, *, epochs: int) -> None:
    """The tiny job with other rows; a chat model has a folder of its own."""
    make_job(job, epochs=epochs, lanes=1)
    settings, more, rows = job / "memsup.toml", "", []
    if task.startswith("chat"):
        tiny_chat_model(job / "base")
        rows = dialogues(240)
        more = 'kind = "causal-lm"\nmodel = "base"\n'
    else:
        with (job / "reviews.csv").open(encoding="utf-8", newline="") as file:
            reviews = list(csv.DictReader(file))
        for review in reviews:
            text, label = review["text"], review["label"]
            of_task: dict[str, dict[str, object]] = {
                "pairs": {"text": text, "second": text[::-1], "label": label},
                "labels": {"text": text, "label": [label, ("short", "long")[len(text) > 12]]},
                "scores": {"text": text, "label": len(text) / 10},
                "tags": {"tokens": list(text), "tags": [("O", "B-DIGIT")[sign.isdecimal()] for sign in text]},
            }
            rows.append(of_task[task])
        more = {
            "pairs": 'text_pair = "second"\n',
            "labels": 'problem_type = "multi_label_classification"\n',
            "scores": 'problem_type = "regression"\n',
            "tags": 'kind = "token-classification"\n',
        }[task]
    (job / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    text = settings.read_text(encoding="utf-8").replace('"reviews.csv"\n', f'"rows.jsonl"\n{more}')
    text += '[recovery]\nstandby = "on"\n'
    if task.startswith("chat"):
        text = text.replace('model = "tiny-bert"\n', "").replace("max_length = 48", "max_length = 160")
        text = text.replace("micro_tokens = 96", "micro_tokens = 600")
        text += "[lora]\nrank = 4\ndropout = 0.2\n" + ("base_bits = 4\n" if task == "chat4" else "")
    settings.write_text(text, encoding="utf-8")


def back(job: Path, draw: random.Random, kills: int, standby: str) -> int:
    """Kills the worker of one run again and again, and prints how soon it trained again."""
    make_job(job, epochs=4000, every="1s", lanes=1)
    took_s: list[float] = []
    born = 0
    try:
        memsup("start", "--run", "back", "--set", f"recovery.standby={standby}", cwd=job)
        if standby == "on":
            eventually(lambda: any(line["event"] == "standby" for line in ledger("back")), 60)
        while len(took_s) < kills:
            saved = saved_step(until(lambda seen: seen["state"] == "running", run="back"))
            until(lambda seen: saved_step(seen) > saved, run="back")  # noqa: B023 - deaths without a checkpoint wait longer
            time.sleep(draw.uniform(0, 1))
            seen = status("back")
            os.kill(seen["worker_pid"], signal.SIGKILL)
            took_s.append(seconds_to_next_step(run_paths("back").state / "audit.txt"))
            born += "--warm-fd" in psutil.Process(status("back")["worker_pid"]).cmdline()
        supervisor = psutil.Process(status("back")["pid"])
        of_warm = [sum(child.cpu_times()[:2]) for child in supervisor.children() if "--warm-fd" in child.cmdline()][:1]
        deaths = [line for line in ledger("back") if line["event"] == "death"]
    finally:
        end_supervisors()
    print(f"{len(took_s)} kills, {born} workers forked from what stood by; it took {of_warm} s of a core.")
    print_costs(took_s, deaths)
    return 0


def lost(job: Path, draw: random.Random, kills: int) -> int:
    """Kills the worker of one run again and again, and prints how much work that cost."""
    make_job(job, epochs=10_000, every="10m", lanes=1)
    os.environ |= SLOWLY
    took_s: list[float] = []
    different, kept = 0, 0
    audit = run_paths("lost").state / "audit.txt"
    try:
        memsup("start", "--run", "lost", "--set", "recovery.standby=on", "--set", "recovery.in_memory=on", cwd=job)
        until(lambda seen: seen["state"] == "running", run="lost")
        memsup("checkpoint", "--run", "lost")
        while len(took_s) < kills:
            # Deaths without anything newer wait longer.
            kept = kept_step(until(lambda seen: kept_step(seen) > kept, within_s=300, run="lost"))  # noqa: B023
            time.sleep(draw.uniform(0, 25))
            seen = status("lost")
            os.kill(seen["worker_pid"], signal.SIGKILL)
            kept, lines = max(kept, kept_step(seen)), audit.read_bytes()
            took_s.append(seconds_to_next_step(audit))
            eventually(lambda: audit.stat().st_size > len(lines), 300)  # noqa: B023
            with audit.open("rb") as file:
                different += file.read(len(lines)) != lines
            print(f"kill {len(took_s)}: back after {took_s[-1]:.2f} s", flush=True)
        lines_of = {event: [line for line in ledger("lost") if line["event"] == event] for event in ("death", "memory_used")}
    finally:
        end_supervisors()
    print(f"{kills} kills, {len(lines_of['memory_used'])} gone on from memory, {different} with other bits.")
    print_costs(took_s, lines_of["death"])
    return 1 if different else 0


def print_costs(took_s: list[float], deaths: list[Any]) -> None:
    lost_s = [line.get("lost_s", 0.0) for line in deaths]
    delays_s = [line["delay_s"] for line in deaths]
    print("\n| seconds | p50 | p99 | max |\n|---|---|---|---|")
    for what, values in (("kill → next step", took_s), ("of that, waiting", delays_s), ("work lost", lost_s)):
        ordered = sorted(values)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        print(f"| {what} | {ordered[len(ordered) // 2]:.2f} | {p99:.2f} | {ordered[-1]:.2f} |")


def kept_step(seen: Any) -> int:
    return seen["checkpoint"]["memory_step"] or 0


def saved_step(seen: Any) -> int:
    return (seen["checkpoint"] or {}).get("step") or 0


def seconds_to_next_step(audit: Path) -> float:
    """The time until the audit of a run, whose worker was killed just now, has a step more than the next worker began with."""
    began_s, least = time.monotonic(), audit.stat().st_size
    while time.monotonic() < began_s + 120:
        size = audit.stat().st_size
        if size > least:
            return time.monotonic() - began_s
        least = min(least, size)
        time.sleep(0.002)
    raise TimeoutError("the worker did not come back")


if __name__ == "__main__":
    sys.exit(main())
