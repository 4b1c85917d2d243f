"""A training program of a person's own that has Hugging Face's Trainer and knows nothing of memsup: as a script, as many lives
in one process, and as lives that are processes of their own and can be killed, without the import that takes most of a life.

Its model, data and tokens are made in it, so that a step takes a few milliseconds. What it ends with, weights and the log of
its losses, tells whether it was gone on with in the right place: it accumulates, drops out, and, as `KIND=masked`, its collator
draws for each batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.nursery import Nursery, NurseryChild

PROGRAM = """
import json, os, sys, time
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, Trainer, TrainingArguments

torch.set_num_threads(1)
kind, more = os.environ.get("KIND", "classes"), json.loads(os.environ.get("ARGUMENTS", "{}"))
draw = torch.Generator().manual_seed(1)

class Rows(torch.utils.data.Dataset):
    def __init__(self, count):
        lengths = torch.randint(4, 12, (count,), generator=draw).tolist()
        self.rows = [torch.randint(5, 50, (length,), generator=draw).tolist() for length in lengths]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, at):
        return {"input_ids": self.rows[at], "labels": sum(self.rows[at]) % 2}

class Stream(torch.utils.data.IterableDataset):
    def __init__(self, count):
        self.rows, self.epoch = Rows(count), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.epoch))
        return (self.rows[at] for at in order.tolist())

def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    if kind == "masked":
        chosen = (torch.rand(ids.shape) < 0.3) & (ids != 0)
        chosen[:, 0] = True
        labels, ids = torch.where(chosen, ids, -100), torch.where(chosen, 1, ids)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

def training(number):
    torch.manual_seed(number)
    shape = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                 max_position_embeddings=32, num_labels=2, hidden_dropout_prob=0.1)
    config = BertConfig(**(shape | json.loads(os.environ.get("SHAPE", "{}"))))
    model = (BertForMaskedLM if kind == "masked" else BertForSequenceClassification)(config)
    arguments = dict(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_train_epochs=3, logging_steps=5,
                     save_steps=7, eval_steps=6, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True)

    class Own(Trainer):
        def training_step(self, *given, **named):
            exec(os.environ.get("IN_A_STEP", ""), globals() | locals())
            time.sleep(float(os.environ.get("STEP_S", "0")))
            return super().training_step(*given, **named)

    rows = (Stream if kind == "stream" else Rows)(int(os.environ.get("ROWS", "50")))
    trainer = Own(model, TrainingArguments(f"out{number}", **(arguments | more)), train_dataset=rows, eval_dataset=Rows(10),
                  data_collator=collate)
    exec(os.environ.get("BEFORE", ""), globals() | locals())
    output = trainer.train()
    trainer.evaluate()
    exec(os.environ.get("BEHIND", ""), globals() | locals())
    torch.save(model.state_dict(), f"weights{number}.pt")
    log = [{name: value for name, value in line.items() if not name.endswith(("runtime", "_per_second", "_time"))}
           for line in trainer.state.log_history]
    with open(f"log{number}.json", "w") as file:
        json.dump([output.global_step, output.training_loss, log], file, sort_keys=True)

for number in range(1, int(os.environ.get("TRAININGS", "1")) + 1):
    training(number)
"""
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def needs_trainer() -> None:
    """Skips the test where Trainer cannot be used."""
    pytest.importorskip("accelerate", reason="NOT RUN: accelerate is not installed here; make setup installs it")


def write_program(folder: Path) -> list[str]:
    """Writes the program, and makes the environment that it runs in, which has Trainer and nothing of memsup; returns the
    command that runs it.
    """
    (folder / "train.py").write_text(PROGRAM)
    home = folder / "environment"
    if not home.exists():
        venv.create(home, symlinks=True, with_pip=False)
        (site,) = home.glob("lib/python*/site-packages")
        (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # and not what is installed by .pth there
    return [str(home / "bin" / "python"), "train.py"]


def undisturbed(folder: Path, **environment: str) -> Path:
    """Runs the program by itself, without `memsup start`; returns its folder."""
    folder.mkdir()
    (folder / "train.py").write_text(PROGRAM)
    subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=os.environ | QUIET | environment, stdout=2, check=True, timeout=120
    )
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """In what two programs have ended differently: bits of weights, numbers of the log, what was saved for the user."""
    import torch

    found = []
    for weights in sorted(one.glob("weights*.pt")):
        first, second = torch.load(weights), torch.load(other / weights.name)
        found += [f"{weights.name}: {name}" for name in first if not torch.equal(first[name], second[name])]
    for log in sorted(one.glob("log*.json")):
        found += [log.name] if log.read_bytes() != (other / log.name).read_bytes() else []
    for out in sorted(one.glob("out*")):
        found += [out.name] if checkpoints(out) != checkpoints(other / out.name) else []
    return found


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(kept: Path, every_s: float = 1e9) -> dict[str, str]:
    """What a supervisor puts into a program's environment whose checkpoints are to lie in `kept`."""
    words = {"socket": "/", "run_id": "a run", "checkpoints": str(kept), "every_s": every_s, "keep": 2}
    return {"_MEMSUP_LINK": json.dumps(words)}


# --------------------------------------------------------------------------------------------------------------------
# Lives as processes


class BornLives:
    """Lives of the program as processes that a nursery forks: of each name one training, with memsup's checkpoints in
    `NAME-kept`. Their link to a supervisor is not opened.
    """

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery, self.folder = nursery, folder

    def begin(self, name: str, *, guarded: bool = True, every_s: float = 1e9, **environment: str) -> NurseryChild:
        """Begins a life. It ends with 0 where its training has come to its end."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "train.py").write_text(PROGRAM)
        words = told(self.folder / f"{name}-kept", every_s) if guarded else {}
        with open(home / "printed", "ab") as printed:
            return self._nursery.fork(
                ["train.py"],
                os.environ | QUIET | words | environment,
                output_fd=printed.fileno(),
                second_fd=printed.fileno(),
                cwd=home,
            )

    def whole(self, name: str, *, guarded: bool = True, **environment: str) -> Path:
        """One life to its end; returns its folder."""
        life = self.begin(name, guarded=guarded, **environment)
        assert life.wait(120) == 0, (self.folder / name / "printed").read_text()
        return self.folder / name


# --------------------------------------------------------------------------------------------------------------------
# Many lives in one process


class Killed(BaseException):
    """The end of a life: nothing catches it, and nothing is saved."""


class Lives:
    """Lives of the program in this process, each as if it had begun anew, with memsup's checkpoints in one folder. The link to
    a supervisor, which is of no matter for what is computed, is not opened.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import transformers
        import transformers.trainer

        from memsup import attach, life, trainer
        from memsup.link import Link
        from memsup.session import Session

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        monkeypatch.setattr(transformers.PrinterCallback, "on_log", lambda *_, **__: None)
        monkeypatch.setattr(transformers.trainer.Trainer, "train", transformers.trainer.Trainer.train)
        attach.join(transformers.trainer)
        self.folder, self.patch, self.life, self.trainer = folder, monkeypatch, life, trainer
        self._code = compile(PROGRAM, "train.py", "exec")
        self._boundary = Session.boundary
        self._dies_in: int | None = None
        self._draw = random.Random()
        monkeypatch.setattr(Link, "open", lambda _link: None)
        monkeypatch.setattr(Session, "boundary", lambda session: self._at_boundary(session))

    def _at_boundary(self, session: Any) -> None:
        if self._dies_in is not None:
            if self._draw.random() < 0.4:
                session.save_now()
            self._dies_in -= 1
            if self._dies_in <= 0:
                raise Killed
        self._boundary(session)

    @contextlib.contextmanager
    def _in(self, folder: Path, environment: dict[str, str]) -> Iterator[None]:
        folder.mkdir(exist_ok=True)
        with self.patch.context() as patch:
            patch.chdir(folder)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(self.life, "_life", None)
            patch.setattr(self.trainer, "_under_way", False)
            patch.setattr(sys, "excepthook", sys.excepthook)
            handler = signal.getsignal(signal.SIGTERM)
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, handler)

    def alone(self, name: str, **environment: str) -> Path:
        """One life without memsup, in the folder of that name; returns that."""
        folder = self.folder / name
        with self._in(folder, environment):
            exec(self._code, {"__name__": "__main__"})
        return folder

    def guarded(self, name: str, dies_in: int | None = None, seed: int = 0, **environment: str) -> bool:
        """One life under memsup, which ends at its `dies_in`th boundary; returns whether it came to its end."""
        self._dies_in, self._draw = dies_in, random.Random(seed)
        with self._in(self.folder / name, environment | told(self.folder / f"{name}-kept")):
            try:
                exec(self._code, {"__name__": "__main__"})
            except Killed:
                return False
        return True

    def killed_at_random(self, name: str, seed: int, lives: int = 40, **environment: str) -> Path:
        """Lives until one comes to its end; returns the folder."""
        draw = random.Random(seed)
        for count in range(lives):
            if self.guarded(name, draw.randint(3, 25), seed + count, **environment):
                return self.folder / name
        assert self.guarded(name, **environment)
        return self.folder / name
