"""What batches may consist of: each part has its rows, all else as it was, in the same types."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from memsup.cut_batch import Documents, Layouts, Rows, trimmed
from memsup.cut_tree import leaves

ROWS = 4
Pair = namedtuple("Pair", ["first", "second"])


class Encoding(UserDict[str, Any]):
    """As transformers' `BatchEncoding`: a mapping with something beside."""

    encodings = "kept"


@dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    size: int
    more: dict[str, Any] = field(default_factory=dict)


X = torch.arange(ROWS * 3).reshape(ROWS, 3)
Y = torch.arange(ROWS)
ROW_3 = X[3:4]


@pytest.mark.parametrize(
    ("batch", "last"),
    [
        (X, ROW_3),
        ((X, Y), (ROW_3, Y[3:])),
        ([X, Y], [ROW_3, Y[3:]]),
        (
            {"x": X, "n": torch.tensor(7), "scale": 2.0, "none": None},
            {"x": ROW_3, "n": torch.tensor(7), "scale": 2.0, "none": None},
        ),
        (Encoding(input_ids=X, labels=Y), Encoding(input_ids=ROW_3, labels=Y[3:])),
        (OrderedDict(x=X), OrderedDict(x=ROW_3)),
        (Pair(X, [Y, {"deep": X}]), Pair(ROW_3, [Y[3:], {"deep": ROW_3}])),
        (Frozen(X, 9, {"y": Y}), Frozen(ROW_3, 9, {"y": Y[3:]})),
        ((["a", "b", "c", "d"], Y), (["d"], Y[3:])),
        ({"x": X.numpy(), "text": ["a", "b", "c", "d"]}, {"x": X.numpy()[3:], "text": ["d"]}),
        (
            {"x": X, "boxes": [{"at": torch.zeros(n, 4)} for n in (1, 2, 3, 5)]},
            {"x": ROW_3, "boxes": [{"at": torch.zeros(5, 4)}]},
        ),
        ([{"x": X[i], "y": i} for i in range(ROWS)], [{"x": X[3], "y": 3}]),
        ([{"ids": X}, {"ids": X}], [{"ids": ROW_3}, {"ids": ROW_3}]),
        (([torch.zeros(3, n, 2) for n in (1, 2, 3, 4)], ["a", "b", "c", "d"]), ([torch.zeros(3, 4, 2)], ["d"])),
        ({"input_ids": X, "weights": torch.ones(7)}, {"input_ids": ROW_3, "weights": torch.ones(7)}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_part_is_of_the_same_types_and_has_its_rows(batch: Any, last: Any) -> None:
    split = Layouts().find(batch)
    assert split is not None
    assert split.count == ROWS
    part = split.part(3, 4)
    assert type(part) is type(batch)
    assert getattr(part, "encodings", None) == getattr(batch, "encodings", None)
    for (path, mine), (expected_path, expected) in zip(leaves(part), leaves(last), strict=True):
        assert path == expected_path
        assert type(mine) is type(expected)
        assert np.array_equal(mine, expected) if isinstance(mine, torch.Tensor | np.ndarray) else mine == expected


@pytest.mark.parametrize(
    "batch",
    [
        None,
        {},
        "text",
        {"graph": object()},
        {"n": torch.tensor(3)},
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        torch.eye(3).to_sparse(),
    ],
)
def test_what_has_no_rows_is_not_cut(batch: Any) -> None:
    split = Layouts().find(batch)
    assert split is None or split.count != 2


def test_what_had_no_rows_is_passed_on_also_where_its_size_happens_to_fit() -> None:
    layouts, weights = Layouts(), torch.ones(7)
    layouts.find({"input_ids": X, "weights": weights})
    split = layouts.find({"input_ids": torch.zeros(7, 3), "weights": weights})
    assert split is not None
    assert split.part(0, 2)["weights"] is weights
    assert layouts.find({"input_ids": weights, "weights": weights}) is not None


def test_what_had_rows_and_has_others_is_not_cut() -> None:
    layouts = Layouts()
    layouts.find({"input_ids": X, "patches": torch.zeros(ROWS, 2)})
    assert layouts.find({"input_ids": X, "patches": torch.zeros(9, 2)}) is None


# --------------------------------------------------------------------------------------------------------------------
# Padding

MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]])
LABELS = torch.tensor([[1, 2, -100, -100], [3, -100, -100, -100]])


def test_padding_is_cut_off_on_the_right_of_all_that_belongs_to_its_mask() -> None:
    part = {
        "input_ids": MASK,
        "attention_mask": MASK,
        "labels": LABELS,
        "decoder_input_ids": MASK,
        "decoder_attention_mask": MASK[:, :3],
    }
    shorter = trimmed({"deep": [part]})
    assert shorter is not None
    lengths = {name: value.shape[1] for name, value in shorter["deep"][0].items()}
    assert lengths == {"input_ids": 2, "attention_mask": 2, "labels": 2, "decoder_input_ids": 4, "decoder_attention_mask": 2}
    assert shorter["deep"][0]["labels"].is_contiguous()


@pytest.mark.parametrize(
    "part",
    [
        {"input_ids": MASK},
        {"input_ids": MASK, "attention_mask": torch.ones(2, 4, dtype=torch.long)},
        {"input_ids": MASK, "attention_mask": MASK.flip(1)},  # on the left: positions would be others
        {"input_ids": MASK, "attention_mask": MASK, "labels": torch.zeros(2, 4, dtype=torch.long)},
        {"input_ids": MASK, "attention_mask": MASK, "pairs": torch.zeros(2, 1, 4, 4)},
        {"input_ids": MASK, "attention_mask": MASK, "start_positions": torch.tensor([0, 3])},
        {"input_ids": MASK, "attention_mask": torch.zeros(2, 4)},
        MASK,
    ],
)
def test_where_that_is_not_certain_nothing_is_cut_off(part: Any) -> None:
    assert trimmed(part) is None


# --------------------------------------------------------------------------------------------------------------------
# Packed rows

POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3]])
IDS = torch.arange(9)[None]


def packed(**more: Any) -> dict[str, Any]:
    return {"input_ids": IDS, "position_ids": POSITIONS, "labels": IDS.masked_fill(POSITIONS == 0, -100), **more}


def test_a_packed_row_is_cut_at_its_documents() -> None:
    ends = torch.tensor([0, 3, 5, 9], dtype=torch.int32)
    split = Layouts().find(packed(cu_seq_lens_q=ends, max_length_q=4, seq_idx=torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])))
    assert isinstance(split, Documents)
    assert (split.count, split.tokens(1, 3)) == (3, 6)
    part = split.part(1, 3)
    assert part["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8]]
    assert part["cu_seq_lens_q"].tolist() == [0, 2, 6]
    assert part["seq_idx"].tolist() == [[0, 0, 1, 1, 1, 1]]
    assert split.part(0, 2)["max_length_q"] == 3


def test_a_document_whose_first_label_counts_stays_with_the_one_before() -> None:
    batch = packed()
    batch["labels"][0, 3] = 3
    split = Layouts().find(batch)
    assert isinstance(split, Documents)
    assert (split.count, split.tokens(0, 1)) == (2, 5)


@pytest.mark.parametrize(
    "more",
    [
        {"labels": None},
        {"attention_mask": torch.ones(1, 9)},
        {"cu_seq_lens_q": torch.tensor([0, 3, 9])},
        {"max_length_q": 4},
        {"lengths": torch.tensor([3, 2, 4])},
    ],
)
def test_a_packed_row_that_says_more_than_is_understood_is_not_cut(more: dict[str, Any]) -> None:
    split = Layouts().find(packed(**more))
    assert split is None or (isinstance(split, Rows) and split.count == 1)


def test_a_batch_of_the_form_of_the_one_before_is_cut_as_if_it_were_the_first() -> None:
    """And one of another form is looked at anew."""

    def batch(rows: int, length: int, **more: Any) -> dict[str, Any]:
        return {"input_ids": torch.arange(rows * length).reshape(rows, length), "table": torch.zeros(3, 2), **more}

    layouts = Layouts()
    several = [
        batch(4, 7),
        batch(4, 9),
        batch(5, 9),
        batch(4, 7),
        batch(4, 7, labels=torch.zeros(4)),
        batch(4, 7, names=["a"] * 4),
    ]
    for one in [*several, *several]:
        found, fresh = layouts.find(one), Layouts().find(one)
        assert isinstance(found, Rows)
        assert isinstance(fresh, Rows)
        assert (found.count, found.length, found.cut) == (fresh.count, fresh.length, fresh.cut)
        assert torch.equal(found.part(1, 3)["input_ids"], one["input_ids"][1:3])
    for _ in range(2):
        found = layouts.find(batch(3, 7))
        assert isinstance(found, Rows)
        assert found.cut == {("input_ids",)}, "the table was passed on before, so it is also where its size happens to fit"
