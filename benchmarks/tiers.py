"""Full's speed at low's memory: memsup against the guide's scripts and a tuned Hugging Face Trainer, under real memory limits.

    python benchmarks/tiers.py [--limits 4.0 2.5 1.5 1.0] [--lengths 512 128] [--rows 240] [--repeats 3] [--results FILE]

Needs root, cgroup version 1, and `pip install accelerate` for the Trainer. All train the same model (`boxed.py`) on the same
rows, cut at the same length, 16 samples a step, each run alone in a cgroup of its own without swap.

* *script*: the guide's three: rows x length 1 x 128, 4 x 256, 8 x 512, padded to that length, in order, plain torch, float32.
  Five steps to warm up, then one whole pass.
* *Trainer*: dynamic padding and grouping by length, at 1, 2, 4, 8 and 16 rows, gradients accumulated to 16; float32, and as a
  row of its own bfloat16. All are tried at the largest limit, and at smaller ones those that are not too large for it, the
  fastest first, until two survive (one in bfloat16); the fastest of each is repeated, in turns with memsup. The second of two
  whole passes counts.
* *memsup*: `memsup start --tier auto --wait`, and as a row of its own, once, the same with training.amp = off. The second of
  two whole passes counts, without its first step, into which the evaluation between the passes falls.

Loading, evaluation and saving are not counted. What died at a limit, or took more than a smaller one has, is dead there.
`--results` takes one line of JSON for each run; started again, what is in there is not run again. Beside samples/s stands the
share of the machine's peak (`peak.py`), measured right after each run: useful operations, without padding, / seconds / peak.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxed import LOOK_S, MEMSUP, Steps, box, environment, make_job, memsup_start

GIB = 2**30
EFFECTIVE = 16
SCRIPTS = {"script 1 x 128": (1, 128), "script 4 x 256": (4, 256), "script 8 x 512": (8, 512)}
TRAINER_ROWS = (1, 2, 4, 8, 16)
WARM_UP_STEPS = 5
MOST_S = 1200.0
OUT_OF_MEMORY = ("can't allocate memory", "MemoryError", "bad_alloc", "could not create a primitive")

Result = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------------
# The contestants that are not memsup: each a process of its own that prints its samples per second


def script(folder: Path, rows: int, length: int) -> float:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    ids, masks, labels = _tokens(folder, length, pad=True)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder / "model"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    began_s = 0.0
    count = len(ids) // EFFECTIVE * EFFECTIVE
    steps = [*range(0, WARM_UP_STEPS * EFFECTIVE, EFFECTIVE), *range(0, count, EFFECTIVE)]
    for number, begin in enumerate(steps):
        if number == WARM_UP_STEPS:
            began_s = time.perf_counter()
        for first in range(begin, begin + EFFECTIVE, rows):
            part = slice(first, first + rows)
            batch = {"input_ids": ids[part], "attention_mask": masks[part], "labels": labels[part]}
            loss = model(**{name: torch.tensor(value) for name, value in batch.items()}).loss
            (loss * rows / EFFECTIVE).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return count / (time.perf_counter() - began_s)


def trainer(folder: Path, rows: int, length: int, amp: str) -> float:
    import datasets
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    ids, _, labels = _tokens(folder, length, pad=False)
    examples = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    done_at_s: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
            done_at_s.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=EFFECTIVE // rows,
        train_sampling_strategy="group_by_length",
        num_train_epochs=2,
        bf16=amp == "bf16",
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder / "model"))
    collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder / "model"))
    Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collator, callbacks=[Clock()]).train()
    a_pass = len(done_at_s) // 2
    return len(ids) / (done_at_s[-1] - done_at_s[a_pass - 1])


def _tokens(folder: Path, length: int, *, pad: bool) -> tuple[list[list[int]], list[list[int]], list[int]]:
    import csv

    from transformers import AutoTokenizer

    with (folder / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = tokenizer([row["text"] for row in rows], truncation=True, max_length=length, padding="max_length" if pad else False)
    return found["input_ids"], found["attention_mask"], [names.index(row["label"]) for row in rows]


# --------------------------------------------------------------------------------------------------------------------
# One run in its box


def run(contestant: str, amp: str, length: int, limit_gib: float, rows: int, work: Path) -> Result:
    """`samples_per_s` is None where it died, and `death` says how."""
    home = Path(tempfile.mkdtemp(dir=work))
    steps = None
    if contestant == "memsup":
        settings = ["training.epochs=2", f"training.max_length={length}", "checkpoint.every=1h"]
        command = memsup_start(work, *settings, *(["training.amp=off"] if amp == "off" else []))
        steps = Steps(home / "state/bench/audit.txt")
    else:
        command = [sys.executable, __file__, "--child", contestant, amp, str(length), str(work)]
    log = home / "log"
    with box(int(limit_gib * GIB)) as limits:
        child = limits.start(command, environment(home), log)
        deadline_s = time.monotonic() + MOST_S
        while child.poll() is None and time.monotonic() < deadline_s:
            limits.look()
            if steps is not None:
                steps.look(time.monotonic())
            time.sleep(LOOK_S)
        seen = limits.look()
        if child.returncode is None:
            child.send_signal(signal.SIGKILL)
            child.wait()
        status = end_memsup(home) if contestant == "memsup" else {}
    result: Result = {
        "contestant": contestant,
        "amp": amp,
        "length": length,
        "limit_gib": limit_gib,
        "rows": rows,
        "samples_per_s": None,
        "death": None,
        "peak_usage_bytes": seen.usage_bytes,
        "peak_rss_bytes": seen.rss_bytes,
        "oom_kills": seen.oom_kills,
        "restarts": status.get("restarts"),
        "load": os.getloadavg()[0],
    }
    if not seen.oom_kills and time.monotonic() > deadline_s:
        raise SystemExit(f"{contestant} takes longer than {MOST_S:.0f} s: try fewer --rows.")
    said = log.read_text(encoding="utf-8", errors="replace")
    if child.returncode != 0:
        if not seen.oom_kills and not any(words in said for words in OUT_OF_MEMORY) and contestant != "memsup":
            raise SystemExit(f"{contestant} failed, and not for memory:\n{said[-3000:]}")
        result["death"] = "killed for memory" if seen.oom_kills else f"exit code {child.returncode}: {said.strip()[-200:]}"
    elif steps is None:
        result["samples_per_s"] = json.loads(said.strip().splitlines()[-1])
    else:
        a_pass = len(steps.done_at_s) // 2
        result["samples_per_s"] = EFFECTIVE * steps.per_s(a_pass + 1, 2 * a_pass)
    if result["samples_per_s"] is not None:
        asked = [sys.executable, str(Path(__file__).with_name("peak.py")), "--job", str(work), str(length)]
        told = subprocess.run([*asked, "off" if amp == "off" else "bf16"], capture_output=True, text=True, check=True).stdout
        useful, peak_per_s = json.loads(told.strip().splitlines()[-1])
        result["share"] = useful * result["samples_per_s"] / peak_per_s
    shutil.rmtree(home)
    return result


def end_memsup(home: Path) -> dict[str, Any]:
    """Its last status; ends what would still be there if `--wait` was killed."""
    subprocess.run([*MEMSUP, "stop", "--now", "--run", "bench"], env=environment(home), capture_output=True, check=False)
    told = subprocess.run(
        [*MEMSUP, "status", "--json", "--run", "bench"], env=environment(home), capture_output=True, text=True, check=False
    )
    try:
        document: dict[str, Any] = json.loads(told.stdout)
    except ValueError:
        return {}
    return document


# --------------------------------------------------------------------------------------------------------------------
# Which runs


class Results:
    """The runs so far, in a file that is added to."""

    def __init__(self, file: Path, rows: int, work: Path) -> None:
        self._file, self._rows, self._work = file, rows, work
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.all: list[Result] = [found for found in map(json.loads, lines) if found["rows"] == rows]

    def of(self, contestant: str, amp: str, length: int, limit_gib: float) -> list[Result]:
        key = (contestant, amp, length, limit_gib)
        return [r for r in self.all if (r["contestant"], r["amp"], r["length"], r["limit_gib"]) == key]

    def speed(self, contestant: str, amp: str, length: int, limit_gib: float) -> float | None:
        """The median. Returns None where it has not run or died."""
        found = self.of(contestant, amp, length, limit_gib)
        if not found or any(r["death"] for r in found):
            return None
        return statistics.median(r["samples_per_s"] for r in found)

    def have(self, contestant: str, amp: str, length: int, limit_gib: float, times: int = 1) -> None:
        """Runs it until there are so many, or it is known to die."""
        while len(found := self.of(contestant, amp, length, limit_gib)) < times and not any(r["death"] for r in found):
            result = self._implied(contestant, amp, length, limit_gib)
            result = result or run(contestant, amp, length, limit_gib, self._rows, self._work)
            self.all.append(result)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            rate = result["death"] or f"{result['samples_per_s']:.1f} samples/s"
            peak = f"{result['peak_rss_bytes'] / GIB:.2f} GiB"
            print(f"{limit_gib} GiB, {length}: {contestant}, {amp}: {rate}, {peak}", file=sys.stderr, flush=True)

    def _implied(self, contestant: str, amp: str, length: int, limit_gib: float) -> Result | None:
        if contestant == "memsup":
            return None  # it adapts
        for larger in self.all:
            same = (larger["contestant"], larger["amp"], larger["length"]) == (contestant, amp, length)
            if same and larger["limit_gib"] > limit_gib:
                if larger["death"]:
                    return larger | {"limit_gib": limit_gib, "death": f"as at {larger['limit_gib']} GiB"}
                if larger["peak_rss_bytes"] > limit_gib * GIB:
                    return larger | {
                        "limit_gib": limit_gib,
                        "samples_per_s": None,
                        "death": f"takes {larger['peak_rss_bytes'] / GIB:.2f} GiB",
                    }
        return None


def measure(results: Results, limits: list[float], lengths: list[int], repeats: int) -> None:
    limits = sorted(limits, reverse=True)
    for limit in limits:
        for name, (_, length) in SCRIPTS.items():
            results.have(name, "off", length, limit)
    for length in lengths:
        for amp in ("off", "bf16"):
            for rows in TRAINER_ROWS:
                results.have(f"Trainer {rows}", amp, length, limits[0])
        for limit in limits:
            results.have("memsup", "off", length, limit)
            repeated = [("memsup", "auto")]
            for amp, most in (("off", 2), ("bf16", 1)):
                repeated += best_trainers(results, amp, length, limit, limits[0], most)[:1]
            for times in range(1, repeats + 1):  # alternating
                for contestant, amp in repeated:
                    results.have(contestant, amp, length, limit, times)


def best_trainers(results: Results, amp: str, length: int, limit: float, top: float, most: int) -> list[tuple[str, str]]:
    """`most` that survive at this limit, the fastest first."""
    names = [f"Trainer {rows}" for rows in TRAINER_ROWS]
    names.sort(key=lambda name: -(results.speed(name, amp, length, top) or 0.0))
    survivors: list[tuple[str, str]] = []
    for name in names:
        results.have(name, amp, length, limit)
        if results.speed(name, amp, length, limit) is not None:
            survivors.append((name, amp))
        if len(survivors) == most:
            break
    return sorted(survivors, key=lambda one: -(results.speed(*one, length, limit) or 0.0))


# --------------------------------------------------------------------------------------------------------------------
# The table


def table(results: Results, limits: list[float], lengths: list[int]) -> Iterator[str]:
    yield (
        "| limit | cut at | who | samples/s | share of the peak | of the best float32 Trainer | peak RSS "
        "| peak with page cache | deaths, trips |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for limit in sorted(limits):
        for name, (_, length) in SCRIPTS.items():
            yield _row(results, name, "off", length, limit, None)
        for length in lengths:
            best = {amp: _best(results, amp, length, limit) for amp in ("off", "bf16")}
            against = None if best["off"] is None else results.speed(best["off"], "off", length, limit)
            for amp in ("off", "bf16"):
                if best[amp] is None:
                    yield f"| {limit} GiB | {length} | Trainer, {amp} | every batch died | | | | | {len(TRAINER_ROWS)} |"
                else:
                    yield _row(results, best[amp] or "", amp, length, limit, against)
            for amp in ("auto", "off"):
                yield _row(results, "memsup", amp, length, limit, against)


def _best(results: Results, amp: str, length: int, limit: float) -> str | None:
    speeds = {f"Trainer {rows}": results.speed(f"Trainer {rows}", amp, length, limit) for rows in TRAINER_ROWS}
    alive = {name: speed for name, speed in speeds.items() if speed is not None}
    return max(alive, key=lambda name: alive[name]) if alive else None


def _row(results: Results, contestant: str, amp: str, length: int, limit: float, against: float | None) -> str:
    found = results.of(contestant, amp, length, limit)
    if not found:
        return f"| {limit} GiB | {length} | {contestant}, {amp} | not run | | | | | |"
    speed = results.speed(contestant, amp, length, limit)
    died = [r["death"] for r in found if r["death"]]
    trips = sum((r["restarts"] or 0) + r["oom_kills"] for r in found)
    spread = f" ({len(found)} runs)" if speed is not None else ""
    rate = died[0] if speed is None else f"{speed:.1f}{spread}"
    shares = [r["share"] for r in found if r.get("share") is not None]
    share = f"{statistics.median(shares):.0%}" if speed is not None and shares else ""
    ratio = f"{speed / against:.2f}" if speed is not None and against else ""
    rss, usage = (f"{max(r[name] for r in found) / GIB:.2f} GiB" for name in ("peak_rss_bytes", "peak_usage_bytes"))
    speeds = f"{rate} | {share} | {ratio}"
    return f"| {limit} GiB | {length} | {contestant}, {amp} | {speeds} | {rss} | {usage} | {len(died)}, {trips} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limits", type=float, nargs="+", default=[4.0, 2.5, 1.5, 1.0], metavar="GIB")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--rows", type=int, default=240, help="a multiple of 16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("tiers.jsonl"))
    parser.add_argument("--only", nargs=2, metavar=("WHO", "AMP"), help="one contestant, at every limit and length")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        contestant, amp, length, folder = options.child
        rows, is_script = int(contestant.split()[1]), contestant.startswith("script")
        print(script(Path(folder), rows, int(length)) if is_script else trainer(Path(folder), rows, int(length), amp))
        return
    if options.rows % EFFECTIVE:
        parser.error("--rows must be a multiple of 16, so that each step has as many samples.")
    with tempfile.TemporaryDirectory(prefix="memsup-tiers-") as work:
        make_job(Path(work), options.rows)
        results = Results(options.results, options.rows, Path(work))
        if options.only:
            for limit in options.limits:
                for length in options.lengths:
                    results.have(*options.only, length, limit, options.repeats)
        else:
            measure(results, options.limits, options.lengths, options.repeats)
        print("\n".join(table(results, options.limits, options.lengths)))


if __name__ == "__main__":
    main()
