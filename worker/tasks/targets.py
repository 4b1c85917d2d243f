"""What is learnt of a text: how a row's label becomes a tensor, its loss, and what an evaluation measures; one class for each
problem type of transformers, which computes the same losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from memsup.shared.data.targets import ProblemType
from memsup.worker.tasks import Metrics
from memsup.worker.tasks.sums import Counts, Sums

Stored = NDArray[Any]
"""Labels of rows as a corpus keeps them."""


WEIGHTS = "weights"
"""Among a batch's tensors, what each row counts, where rows count differently."""


class Target(Protocol):
    """A kind of label."""

    def batched(self, stored: Stored, places: NDArray[np.int64]) -> Stored:
        """The labels of a batch for the loss. `places` has the output of the model for each label of the data."""
        ...

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The rows' losses, one each."""
        ...

    def new_metrics(self) -> Metrics: ...

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        """What a person is told of each output, as transformers' pipeline tells it."""
        ...

    def about(self, names: Sequence[str], stored: Stored) -> str:
        """The labels of the training data in a line for people."""
        ...


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's logits, shape (rows, outputs), in float32 whatever the forward pass computed in."""
    return model(**{name: values for name, values in batch.items() if name not in ("labels", WEIGHTS)}).logits.float()


# --------------------------------------------------------------------------------------------------------------------
# One class


class OneClass:
    """Each text has one of a few labels."""

    def batched(self, stored: Stored, places: NDArray[np.int64]) -> Stored:
        return places[stored]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels, reduction="none")

    def new_metrics(self) -> ClassMetrics:
        return ClassMetrics()

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=-1)

    def about(self, names: Sequence[str], stored: Stored) -> str:
        of_label = np.bincount(stored, minlength=len(names))
        most = [(names[place], of_label[place] / len(stored)) for place in np.argsort(-of_label, kind="stable")[:8]]
        return f"{len(names)}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in most)


class ClassMetrics(Sums):
    """Counts on the model's device, so that nothing waits for it before `result`."""

    summed = ("_loss", "_correct", "_rows_of_label")

    def __init__(self) -> None:
        self._loss: Any = 0.0
        self._correct: Any = 0
        self._rows_of_label: Any = 0

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        logits = logits_of(model, batch)
        self._loss = self._loss + functional.cross_entropy(logits, batch["labels"], reduction="none").double().sum()
        self._correct = self._correct + (logits.argmax(dim=-1) == batch["labels"]).sum()
        places = torch.arange(logits.shape[-1], device=logits.device)  # `bincount` would wait for the device
        self._rows_of_label = self._rows_of_label + (batch["labels"][:, None] == places).sum(dim=0)

    def result(self) -> dict[str, float]:
        rows = int(self._rows_of_label.sum())
        return {
            "accuracy": int(self._correct) / rows,
            "majority_accuracy": int(self._rows_of_label.max()) / rows,
            "loss": float(self._loss) / rows,
            "rows": float(rows),
        }


# --------------------------------------------------------------------------------------------------------------------
# Several labels


class SeveralLabels:
    """Each text has any of the labels, each learnt as a yes or no of its own."""

    def batched(self, stored: Stored, places: NDArray[np.int64]) -> Stored:
        labels = np.zeros((len(stored), len(places)), np.float32)
        labels[:, places] = np.unpackbits(stored, axis=1, count=len(places))
        return labels

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of a row it is the mean over the labels."""
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)

    def new_metrics(self) -> SeveralMetrics:
        return SeveralMetrics()

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def about(self, names: Sequence[str], stored: Stored) -> str:
        of_label = np.unpackbits(stored, axis=1, count=len(names)).mean(axis=0)
        most = ", ".join(f"{names[place]} {100 * of_label[place]:.0f} %" for place in np.argsort(-of_label, kind="stable")[:8])
        return f"{len(names)}, several a text: {most}"


class SeveralMetrics(Sums):
    """Counts on the model's device. A label is told where its probability is above a half."""

    summed = ("_loss", "_rows", "_exact", "_right", "_told_or_true")

    def __init__(self) -> None:
        self._loss: Any = 0.0
        self._rows = 0
        self._exact: Any = 0
        self._right: Any = 0
        self._told_or_true: Any = 0

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        logits, labels = logits_of(model, batch), batch["labels"]
        losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        told, true = logits > 0, labels > 0
        self._loss = self._loss + losses.double().mean(dim=-1).sum()
        self._rows += len(labels)
        self._exact = self._exact + (told == true).all(dim=-1).sum()
        self._right = self._right + (told & true).sum(dim=0)
        self._told_or_true = self._told_or_true + told.sum(dim=0) + true.sum(dim=0)

    def result(self) -> dict[str, float]:
        """F1 of a label that is neither told nor true of any row is 0, as in scikit-learn."""
        of_label = 2 * self._right / self._told_or_true.clamp(min=1)
        return {
            "micro_f1": 2 * int(self._right.sum()) / max(1, int(self._told_or_true.sum())),
            "macro_f1": float(of_label.double().mean()),
            "exact_match": int(self._exact) / self._rows,
            "loss": float(self._loss) / self._rows,
            "rows": float(self._rows),
        }


# --------------------------------------------------------------------------------------------------------------------
# A score


class Score:
    """Each text has a number, which the model's one output learns as it is."""

    def batched(self, stored: Stored, places: NDArray[np.int64]) -> Stored:  # noqa: ARG002 - there is one output
        return stored.astype(np.float32)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(logits.squeeze(-1), labels, reduction="none")

    def new_metrics(self) -> ScoreMetrics:
        return ScoreMetrics()

    def answers(self, logits: torch.Tensor) -> torch.Tensor:
        return logits

    def about(self, names: Sequence[str], stored: Stored) -> str:
        return f"{names[0]!r} is a number: {stored.min():g} to {stored.max():g}, mean {stored.mean():.4g}"


class ScoreMetrics:
    """Keeps two numbers a row on the model's device, since ranks need all of them."""

    def __init__(self) -> None:
        self._said: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        self._said.append(logits_of(model, batch).squeeze(-1))
        self._labels.append(batch["labels"])

    def counts(self) -> Counts:
        return {"said": [part.tolist() for part in self._said], "labels": [part.tolist() for part in self._labels]}

    def add_counts(self, counts: Counts) -> None:
        self._said += [torch.tensor(part) for part in counts["said"]]
        self._labels += [torch.tensor(part) for part in counts["labels"]]

    def result(self) -> dict[str, float]:
        """Without a correlation where the model says one number of all rows, or all have one: there is none."""
        said, labels = (torch.cat(parts).double().cpu().numpy() for parts in (self._said, self._labels))
        found = {"pearson": _correlation(said, labels), "spearman": _correlation(_ranks(said), _ranks(labels))}
        return {
            **{name: value for name, value in found.items() if value is not None},
            "loss": float(np.mean((said - labels) ** 2)),
            "rows": float(len(labels)),
        }


def _correlation(one: Stored, other: Stored) -> float | None:
    """Pearson's. It is None where one of the two does not vary."""
    one, other = one - one.mean(), other - other.mean()
    spread = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / spread if spread > 0 else None


def _ranks(values: Stored) -> Stored:
    """From 0; equal values share the mean of their ranks, as Spearman has it."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


TARGETS: dict[ProblemType, Target] = {
    "single_label_classification": OneClass(),
    "multi_label_classification": SeveralLabels(),
    "regression": Score(),
}
