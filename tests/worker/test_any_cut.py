"""The gradient of a step is that of all of its rows at once, however it is cut: for each task, by the loop itself, in lanes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.chat import dialogues, tiny_chat, tiny_chat_model
from kit.gradients import check_any_cut_of_a_step
from kit.one_life import one_life, without_dropout
from kit.task_rows import TASKS, tiny_task

from memsup.worker.plan.padding import Padding
from memsup.worker.tasks.sequences import IGNORED
from memsup.worker.training import Training

pytestmark = pytest.mark.slow

ROWS = 28
LANES = {"training__threads": 2, "training__lanes": 2, "training__effective_batch": 24, "training__eval_share": 0.2}


def own_loss(life: Training) -> Callable[[Any], torch.Tensor]:
    batch = life.prepared.train.batch(np.arange(len(life.prepared.train)))

    def loss(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(**batch).loss
        return found

    return loss


@pytest.mark.parametrize("task", TASKS)
def test_an_encoder_learns_the_same_under_any_cut(task: str, tmp_path: Path) -> None:
    wanted = without_dropout(tiny_task(tmp_path, task, rows=ROWS, **LANES))
    with one_life(wanted) as life:
        assert life.prepared.padding is Padding.RIGHT
        assert life.plan.at(1).packed
        lengths = life.prepared.train.lengths
        assert lengths.min() < lengths.max()
        if task == "tags":
            labels = life.prepared.train.batch(np.arange(len(lengths)))["labels"]
            assert ((labels == IGNORED).sum(dim=1) > 2).any(), "what is padded or within a word is ignored"
        check_any_cut_of_a_step(life, own_loss(life))


def loss_of_answers(life: Training) -> Callable[[Any], torch.Tensor]:
    """The mean over all that is to be learnt, of rows that are asked one by one."""
    examples = life.prepared.train
    batches = [examples.batch(np.array([row])) for row in range(len(examples))]

    def loss(model: Any) -> torch.Tensor:
        total, count = torch.zeros(()), 0
        for batch in batches:
            scores, targets = model(input_ids=batch["input_ids"]).logits[0, :-1], batch["labels"][0, 1:]
            total = total + torch.nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
            count += int((targets != IGNORED).sum())
        return total / count

    return loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_decoder_learns_the_same_under_any_cut(method: str, tied: bool, tmp_path: Path) -> None:
    """With answers that say nothing behind others that do, and rows that are left out for want of an answer."""
    rows = dialogues(ROWS)
    for row in rows[::5]:
        row["messages"][-1]["content"] = ""
    rows.append({"messages": rows[1]["messages"][:1]})
    model = tiny_chat_model(tmp_path / "model", tie_word_embeddings=tied)
    wanted = tiny_chat(tmp_path, rows=rows, model=model, training__method=method, **LANES)
    with one_life(wanted) as life:
        left_out = sum(life.prepared.left_out.values())
        assert 1 < left_out < 1 + len(rows[::5]), "of some dialogues other answers say something"
        targets = [life.prepared.train.weight(np.array([row])) for row in range(len(life.prepared.train))]
        assert min(targets) < max(targets)
        with torch.no_grad():  # adapters begin with nothing to say
            for name, parameter in life.prepared.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
        check_any_cut_of_a_step(life, loss_of_answers(life), examples=6)
