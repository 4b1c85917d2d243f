"""What a task is: everything about a kind of training that the training loop does not need to know.

A task turns settings into a model and examples, says what one row's loss is and how much it weighs, and measures the
result. It is one file here. The loop (`worker/train.py`) owns the order of samples, the cut into micro-batches, the
optimizer, devices, AMP and checkpoints; a task sees none of them.

Bad input (data, model folder, tokenizer) is an `InputError` of `shared/data`: one plain sentence for the user.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import ProblemType
from memsup.worker.state import Weights, WholeModel
from memsup.worker.tasks.sums import Counts

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from memsup.shared.paths import RunPaths
    from memsup.shared.settings import Settings
    from memsup.worker.plan.padding import Padding
    from memsup.worker.tasks.stream import Stream

Boundary = Callable[[], None]
"""Called between bounded pieces of work while loading, so that orders are answered; what it raises goes through unchanged."""


class Lengths(Protocol):
    """The tokens of rows after truncation, special tokens included, by their numbers."""

    def __getitem__(self, indices: NDArray[np.int64], /) -> NDArray[np.int32]: ...


class Trained(Protocol):
    """Rows by number, memory-mapped: holding them costs (nearly) no memory."""

    @property
    def lengths(self) -> Lengths: ...

    def weight(self, indices: NDArray[np.int64]) -> float:
        """What these rows count together in the loss: their number, unless some count more than others; where tokens are
        learnt, their targets.
        """
        ...

    def where(self, indices: NDArray[np.int64]) -> str:
        """The files and lines of these rows, for a sentence; of many rows only some are named."""
        ...

    def batch(self, indices: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        """These rows in this order, on the CPU, padded to the longest of them: `input_ids` and `attention_mask` (int64,
        rows × longest) and `labels`, as the task's loss takes them. All tensors have one row an index; move them and hand them
        on as they are.
        On a GPU a mask that hides nothing is left out on the way.
        """
        ...


class Examples(Trained, Protocol):
    """All rows that there are of a kind."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Read-only, shape (rows,)."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task, ready to train."""

    model: PreTrainedModel
    """The model, on the CPU, in float32 and eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer, which goes into every checkpoint and into the result beside the model."""
    train: Examples
    """The rows to train on; of a stream its head, by which everything is looked at and judged."""
    stream: Stream | None = None
    """What is trained on where that is a stream. None means that it is `train`."""
    evaluation: Examples
    padding: Padding
    """Where `train` and `evaluation` pad, as the model was found to allow it."""
    about_cuts: list[str]
    """Sentences for people on what the model does otherwise under another cut, and what is done about it."""
    fingerprint: str
    """Changes when the rows, their tokens, their labels or the held-out split change. A checkpoint made with another one
    must not be continued as if nothing had happened."""
    left_out: dict[str, int]
    """How many rows of the data are not trained on, by why not."""
    beside: dict[str, float]
    """Figures of the data without which those of the evaluation say too much, such as `shared_rows`; they end among these."""
    facts: dict[str, str]
    """What was found, one line each, for the log: heading → plain text."""
    samples: Samples | None = None
    """What shows people a few examples of what the model does. None means that its figures say it all."""
    weights: Weights = field(default_factory=WholeModel)
    """What of the model is saved."""


class Samples(Protocol):
    """A few examples of what the model does before and after training."""

    def take(self, model: PreTrainedModel, moment: Literal["before", "after"], boundary: Boundary) -> None:
        """Asks the model, and writes down what it does. Raises OSError, and what `boundary` raises."""
        ...


class Metrics(Protocol):
    """Counts up over an evaluation; never keeps logits."""

    def add(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
        """Computes one batch, on the model's device, and counts it; inside `torch.no_grad()`, with the model in eval mode."""
        ...

    def result(self) -> dict[str, float]:
        """Whole-evaluation figures: `loss` (mean), `rows`, and what else tells of the task, such as `accuracy`."""
        ...

    def counts(self) -> Counts:
        """What was counted so far, for the `add_counts` of another rank."""
        ...

    def add_counts(self, counts: Counts) -> None:
        """Adds what another rank has counted over other rows."""
        ...


class Task(Protocol):
    """A kind of training: from what, with which model, and by which measure."""

    def load(
        self,
        settings: Settings,
        paths: RunPaths,
        boundary: Boundary,
        *,
        checkpoint: Path | None = None,
        padding: Padding | None = None,
        head_rows: int | None = None,
    ) -> Prepared:
        """Loads data (through the cache in `paths.cache`), tokenizer and model.

        With `checkpoint`, the folder of a verified checkpoint, model and tokenizer come from there and `settings.task.model`
        is not needed any more. `padding` is where the run pads already; None means that it is to be found out. `head_rows` is
        by how many first rows a stream was judged; None means that it was not yet. Raises InputError.
        """
        ...

    def loss(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The SUM of the rows' losses, a float32 scalar. Divided by the effective batch's total `weight`, any split into
        micro-batches gives the whole batch's gradient.
        """
        ...

    def weight(self, examples: Trained, indices: NDArray[np.int64]) -> float:
        """The share of these rows: their number or the sum of their weights; target tokens for a task that predicts tokens."""
        ...

    def new_metrics(self) -> Metrics: ...


def find_task(kind: str, problem_type: ProblemType = "single_label_classification") -> Task:
    """The task named `task.kind` in the settings. Imports torch and transformers. Raises InputError."""
    if kind == "text-classification":
        from memsup.worker.tasks.classification import TextClassification

        return TextClassification(problem_type)
    if kind == "token-classification":
        from memsup.worker.tasks.tagging import TokenClassification

        return TokenClassification()
    if kind == "causal-lm":
        from memsup.worker.tasks.causal_lm import CausalLM

        return CausalLM()
    raise InputError(f"There is no task {kind!r}; use text-classification, token-classification or causal-lm.")
