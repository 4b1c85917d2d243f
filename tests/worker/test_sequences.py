"""Rows that are learnt token by token: what they weigh, how they are padded, and that the cache is believed only whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memsup.shared.data.errors import InputError
from memsup.shared.data.sources import Source as Data
from memsup.worker.plan.padding import Padding
from memsup.worker.tasks.sequences import (
    IGNORED,
    NOTHING,
    LeftOut,
    Sequence,
    SequenceCorpus,
    Source,
    open_sequences,
)


class Letters:
    """A token a letter; a capital one has a target."""

    vocabulary_size = 300
    made = 0

    def read(self, part: Data, *, trains: bool) -> Iterator[Sequence | LeftOut]:
        type(self).made += 1
        file = part.files[0].path
        for line, text in enumerate(file.read_text().splitlines()[1:], start=2):
            if text == "-":
                yield LeftOut("they are a dash")
            else:
                yield Sequence([*text.encode()], [7 if sign.isupper() else NOTHING for sign in text], text, file, line)

    def names(self) -> list[str]:
        return ["capital"]


def opened(folder: Path, text: str, *, labels_are_tokens: bool = False) -> SequenceCorpus:
    file = folder / "rows.csv"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    source = Source(task="letters", train=str(file), evaluation=None, eval_share=0.2, seed=1, encoder="bytes")
    return open_sequences(
        folder / "cache", source, lambda *_: Letters(), lambda: None, padding_token=0, labels_are_tokens=labels_are_tokens
    )


TEXT = "text\n" + "\n".join(["Ab", "aBCd", "-", "EFG", "nothing", "Xyzzy", "Hi", "oK", "Yes", "noW", "-"]) + "\n"


def test_a_row_weighs_what_it_has_targets(tmp_path: Path) -> None:
    corpus = opened(tmp_path, TEXT)
    assert corpus.counts.left_out == {"they are a dash": 2, "they have nothing to learn in the tokens that are kept": 1}
    assert (len(corpus.train), len(corpus.evaluation)) == (6, 2)
    rows = corpus.train
    for row in range(len(rows)):
        batch = rows.batch(np.array([row]))
        text = bytes(batch["input_ids"][0].tolist()).decode()
        assert rows.weight(np.array([row])) == sum(map(str.isupper, text)) == int((batch["labels"] != IGNORED).sum())
        assert rows.where(np.array([row])).endswith(f"line {TEXT.splitlines().index(text) + 1}")
    every = np.arange(len(rows))
    assert rows.weight(every) == sum(rows.weight(np.array([row])) for row in every)


@pytest.mark.parametrize("side", [Padding.RIGHT, Padding.LEFT])
@pytest.mark.parametrize("labels_are_tokens", [False, True])
def test_padding_has_no_target(tmp_path: Path, side: Padding, labels_are_tokens: bool) -> None:
    rows = opened(tmp_path, TEXT, labels_are_tokens=labels_are_tokens).train
    batch = rows.padded(np.arange(len(rows)), side)
    ids, labels, mask = (batch[name].numpy() for name in ("input_ids", "labels", "attention_mask"))
    assert (mask.sum(axis=1) == rows.lengths).all()
    assert (ids[mask == 0] == 0).all()
    is_capital = (ids >= ord("A")) & (ids <= ord("Z"))
    assert ((labels != IGNORED) == is_capital).all()
    assert (labels[is_capital] == (ids[is_capital] if labels_are_tokens else 7)).all()
    alone = [rows.padded(np.array([row]), side)["input_ids"][0].tolist() for row in range(len(rows))]
    assert [ids[row][mask[row] == 1].tolist() for row in range(len(rows))] == alone


def test_what_was_made_is_believed_only_whole(tmp_path: Path) -> None:
    made = Letters.made
    first = opened(tmp_path, TEXT)
    assert opened(tmp_path, TEXT).fingerprint == first.fingerprint
    assert Letters.made == made + 1
    (marks,) = (tmp_path / "cache").glob("corpus-*/marks.bin")
    marks.write_bytes(marks.read_bytes()[:-2] + b"\0\0")
    assert opened(tmp_path, TEXT).fingerprint == first.fingerprint
    assert Letters.made == made + 2
    assert opened(tmp_path, TEXT.replace("Ab", "aB")).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("text\n-\n-\n", "has no row that can be learnt from; 2 are left out, since they are a dash."),
        ("text\nAb\n", "too few different rows to hold some out for evaluation: add rows, or set task.eval."),
        ("text\nAb\nAb\nAb\n", "too few different rows to hold some out for evaluation: add rows, or set task.eval."),
    ],
)
def test_too_few_rows_are_refused_with_what_was_left_out(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(InputError) as refused:
        opened(tmp_path, text)
    assert str(refused.value).endswith(why)
    assert not list((tmp_path / "cache").glob("*"))
