"""Data become numbers once, in bounded memory, and the cache of them is believed only when it is whole.

And the task on top of it: however rows are cut into micro-batches and padded, a row's loss and gradient are its own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from kit import KIT
from kit.corpus_child import Codepoints, codepoints, source

from memsup.shared.data.columns import Columns
from memsup.shared.data.doubts import DoubtKind
from memsup.shared.data.errors import DoubtfulError, InputError
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.tasks import Prepared, find_task
from memsup.worker.tasks.characters import SPECIAL_TOKENS, character_vocabulary, write_tokenizer
from memsup.worker.tasks.corpus import Corpus, Encoded, Rows, Text, _write_tokens, hold_out, open_corpus
from memsup.worker.tasks.pretrained import load_config, refuse_mixing

POSITIVE = [
    "房间很干净",
    "服务热情,早餐丰富!",
    "位置方便 near the station",
    "性价比高",
    "下次还会来",
    "床很舒服",
    "景色不错",
    "好",
]
NEGATIVE = [
    "隔音太差",
    "空调坏了,没人修",
    "Very dirty 房间",
    "前台态度恶劣。",
    "再也不来",
    "卫生间有味道",
    "太贵",
    "等了两个小时才入住,非常失望",
]


def nothing() -> None:
    """A boundary at which no order waits."""


def write_reviews(file: Path, repeat: int = 1) -> Path:
    rows = [(f"{text}{n}" if n else text, label) for n in range(repeat) for text, label in labelled()]
    file.write_text("".join(json.dumps({"text": t, "label": c}, ensure_ascii=False) + "\n" for t, c in rows), encoding="utf-8")
    return file


def labelled() -> list[tuple[str, str]]:
    return [(text, "好评") for text in POSITIVE] + [(text, "差评") for text in NEGATIVE]


def texts_of(rows: Rows) -> list[str]:
    """What `Codepoints` made tokens of."""
    every = np.arange(len(rows))
    ends = np.cumsum(rows.lengths)
    return ["".join(map(chr, row)) for row in np.split(rows.tokens(every), ends[:-1])]


# --------------------------------------------------------------------------------------------------------------------
# Tokens


@given(st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=12), min_size=1, max_size=40), st.data())
def test_any_rows_in_any_order_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[int]], data: st.DataObject
) -> None:
    class Given:
        vocabulary_size = data.draw(st.sampled_from([1 << 16, 1 << 17]))

        def encode(self, texts: list[Text]) -> Encoded:
            rows = [written[int("".join(text))] for text in texts]
            return Encoded(rows, [types_of(row) for row in rows] if has_types else None, np.zeros(len(rows), np.bool_), {})

    def types_of(row: list[int]) -> list[int]:
        return [token % 3 for token in row]

    has_types = data.draw(st.booleans())
    if Given.vocabulary_size == 1 << 16:
        written = [[token % (1 << 16) for token in row] for row in written]
    folder = tmp_path_factory.getbasetemp()
    names = [str(number) for number in range(len(written))]
    middle = len(names) // 2
    chunks: list[list[Text]] = [[*part] for part in (names[:middle], names[middle:]) if part]
    offsets = _write_tokens(folder, iter(chunks), Given()).offsets
    assert (folder / "types.bin").exists() == (has_types and any(token % 3 for row in written for token in row))
    types = np.memmap(folder / "types.bin", dtype=np.uint8, mode="r") if (folder / "types.bin").exists() else None
    kind = np.uint16 if Given.vocabulary_size == 1 << 16 else np.uint32
    chosen = np.array(data.draw(st.permutations(range(len(written)))), np.int64)
    tokens = np.memmap(folder / "tokens.bin", dtype=kind, mode="r")
    rows = Rows(tokens, offsets, np.arange(len(written)), chosen, types=types)
    indices = np.array(data.draw(st.lists(st.integers(0, len(written) - 1), max_size=20)), np.int64)
    wanted = [written[place] for place in chosen[indices]]
    assert rows.tokens(indices).tolist() == [token for row in wanted for token in row]
    if types is not None:
        assert np.asarray(rows.token_types(indices)).tolist() == [kind for row in wanted for kind in types_of(row)]
    assert rows.lengths[indices].tolist() == [len(row) for row in wanted]
    assert rows.labels(indices).tolist() == chosen[indices].tolist()


# --------------------------------------------------------------------------------------------------------------------
# The held-out split


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), min_size=1, max_size=200),
    st.floats(0.01, 0.99),
    st.integers(0, 1 << 40),
)
def test_no_text_that_was_trained_on_is_held_out(rows: list[tuple[int, int]], share: float, seed: int) -> None:
    labels = np.array([label for label, _ in rows], np.int64)
    hashes = np.array([text * 0x9E3779B97F4A7C15 % (1 << 64) for _, text in rows], np.uint64)
    held_out = hold_out(labels, hashes, share, seed)
    assert not set(hashes[held_out].tolist()) & set(hashes[~held_out].tolist())
    first_label = dict(zip(hashes.tolist()[::-1], labels.tolist()[::-1], strict=True))
    for label in set(first_label.values()):
        texts = {text for text, mine in first_label.items() if mine == label}
        held = texts & set(hashes[held_out].tolist())
        assert len(held) < len(texts)
        assert held or len(texts) == 1


def test_the_split_is_of_the_wanted_size_and_depends_on_texts_labels_and_seed_alone() -> None:
    hashes = np.frombuffer(np.random.default_rng(0).bytes(8 * 10_000), np.uint64)
    labels = (np.arange(10_000) % 10 == 0).astype(np.int64)
    held_out = hold_out(labels, hashes, 0.1, seed=42)
    assert abs(held_out[labels == 0].mean() - 0.1) < 0.001
    assert abs(held_out[labels == 1].mean() - 0.1) < 0.001
    backwards = hold_out(labels[::-1], hashes[::-1], 0.1, seed=42)
    assert (backwards[::-1] == held_out).all()
    others = hold_out(labels, hashes, 0.1, seed=43)
    assert 0 <= (others & held_out).sum() < 300  # independent ones would share 100


# --------------------------------------------------------------------------------------------------------------------
# The corpus and its cache


def test_doubtful_data_become_no_corpus_unless_accepted(tmp_path: Path) -> None:
    """The complete pass judges as `start` does; labels that do not count are left out, and those that do keep their order."""
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "".join(f"很好 {n},{('pos', 'neg', '-1')[n % 3]}\n" for n in range(60)), encoding="utf-8")
    asked = source(file)
    with pytest.raises(DoubtfulError, match=r"20 rows of 60 have the label '-1'") as doubtful:
        open_corpus(tmp_path / "cache", asked, codepoints, nothing)
    accept = [doubt.kind for doubt in doubtful.value.doubts]
    accepted = open_corpus(tmp_path / "cache", msgspec.structs.replace(asked, accept=accept), codepoints, nothing)
    assert accepted.labels == ["-1", "neg", "pos"]
    chosen = open_corpus(tmp_path / "cache", msgspec.structs.replace(asked, labels=["pos", "neg"]), codepoints, nothing)
    assert (chosen.labels, chosen.counts.other_labels) == (["pos", "neg"], 20)
    assert len(chosen.train) + len(chosen.evaluation) == 40


def test_a_corpus_holds_the_rows_their_labels_and_their_order(tmp_path: Path) -> None:
    file = tmp_path / "评论 1.csv"
    file.write_text("类别,评论\n" + "".join(f'{c},"{t}"\n' for t, c in labelled()) + "好评,  \n", encoding="utf-8-sig")
    corpus = open_corpus(tmp_path / "cache", source(file), codepoints, nothing)
    assert corpus.labels == ["好评", "差评"]
    assert corpus.columns == Columns("评论", "类别")
    assert (corpus.counts.blank, corpus.counts.repeated, corpus.counts.shared) == (1, 0, 0)
    trained, evaluated = texts_of(corpus.train), texts_of(corpus.evaluation)
    assert (len(trained), len(evaluated)) == (12, 4)
    assert [text for text, _ in labelled() if text in trained] == trained
    for rows, texts in ((corpus.train, trained), (corpus.evaluation, evaluated)):
        labels = [corpus.labels[label] for label in rows.labels(np.arange(len(rows)))]
        assert set(zip(texts, labels, strict=True)) <= set(labelled())


def test_evaluation_data_of_their_own_are_kept_apart(tmp_path: Path) -> None:
    train = write_reviews(tmp_path / "train.jsonl")
    evaluation = tmp_path / "eval.tsv"
    evaluation.write_text("label\ttext\n差评\t新的一句\n差评\t太贵\n", encoding="utf-8")
    corpus = open_corpus(tmp_path / "cache", source(train, evaluation), codepoints, nothing)
    assert texts_of(corpus.train) == [text for text, _ in labelled()]
    assert texts_of(corpus.evaluation) == ["新的一句", "太贵"]
    assert corpus.counts.shared == 1
    evaluation.write_text("label\ttext\n中评\t新的一句\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: the label '中评' does not occur"):
        open_corpus(tmp_path / "cache", source(train, evaluation), codepoints, nothing)


def test_the_second_opening_reads_the_cache(tmp_path: Path) -> None:
    file = write_reviews(tmp_path / "a.jsonl")
    made = []

    def make(texts: Iterator[list[Text]], folder: Path) -> Codepoints:
        made.append([text for chunk in texts for text in chunk])
        (folder / "vocab.txt").write_text("x")
        return Codepoints()

    first = open_corpus(tmp_path / "cache", source(file), make, nothing)
    again = open_corpus(tmp_path / "cache", source(file), make, nothing)
    assert made == [texts_of(first.train)], "made once, from the training texts alone"
    assert again.fingerprint == first.fingerprint
    assert texts_of(again.train) == texts_of(first.train)
    assert (again.tokenizer_folder / "vocab.txt").read_text() == "x"


def test_whatever_changes_the_rows_makes_another_corpus_and_the_old_one_goes(tmp_path: Path) -> None:
    file = write_reviews(tmp_path / "a.jsonl")
    cache = tmp_path / "cache"
    seen = {open_corpus(cache, source(file), codepoints, nothing).fingerprint}
    seen.add(open_corpus(cache, source(file, seed=2), codepoints, nothing).fingerprint)
    content = file.read_text(encoding="utf-8")
    before = file.stat()
    file.write_text(content.replace("太贵", "便宜"), encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time
    seen.add(open_corpus(cache, source(file, seed=2), codepoints, nothing).fingerprint)
    assert len(seen) == 3
    assert len(list(cache.iterdir())) == 1
    file.touch()
    assert open_corpus(cache, source(file, seed=2), codepoints, nothing).fingerprint in seen


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "labels.bin", "train.bin", "evaluation.bin", "corpus.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    file = write_reviews(tmp_path / "a.jsonl")
    cache = tmp_path / "cache"
    whole = open_corpus(cache, source(file), codepoints, nothing)
    victim = next(cache.glob(f"corpus-*/{name}"))
    content = bytearray(victim.read_bytes())
    victim.unlink()
    if damage == "flip":
        content[len(content) // 2] ^= 0x80
    if damage != "gone":
        victim.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    again = open_corpus(cache, source(file), codepoints, nothing)
    assert again.fingerprint == whole.fingerprint
    assert texts_of(again.train) == texts_of(whole.train)


def test_an_order_to_leave_goes_through_at_every_boundary_and_leaves_nothing_half(tmp_path: Path) -> None:
    """Reading, learning a vocabulary, encoding and hashing all come to a boundary."""
    file = write_reviews(tmp_path / "a.jsonl", repeat=100)
    cache = tmp_path / "cache"

    def make(texts: Iterator[list[Text]], folder: Path) -> Codepoints:
        for _ in texts:
            pass
        return Codepoints()

    class LeaveError(Exception):
        pass

    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    whole = open_corpus(cache, source(file), make, count)
    assert calls >= 2 + 2 + 2 + 5  # 1,600 rows, read, learnt from and encoded; then five files
    shutil.rmtree(cache)
    for leaves_at in range(1, calls + 1):
        left = leaves_at

        def boundary() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise LeaveError

        with pytest.raises(LeaveError):
            open_corpus(cache, source(file), make, boundary)
        assert list(cache.iterdir()) == []
    assert open_corpus(cache, source(file), make, nothing).fingerprint == whole.fingerprint


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    """The device that is always full; the worker tells this error from a crash by its number."""
    (tmp_path / "tokens.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        _write_tokens(tmp_path, iter([["很好"]]), Codepoints())
    assert caught.value.errno == errno.ENOSPC


CHILD = [sys.executable, str(KIT / "corpus_child.py")]


def test_reading_texts_brings_no_library_of_tables(tmp_path: Path) -> None:
    """What is imported stays in the worker while it trains."""
    file = write_reviews(tmp_path / "a.jsonl", repeat=100)
    child = subprocess.run(
        [*CHILD, tmp_path / "cache", file, "--modules"], capture_output=True, text=True, check=True, timeout=250
    )
    modules = set(child.stdout.splitlines()[-1].split())
    assert "numpy" in modules
    assert not modules & {"pandas", "pyarrow", "datasets"}


@pytest.mark.slow
def test_a_kill_at_any_boundary_costs_a_second_loading_and_nothing_else(tmp_path: Path) -> None:
    """The child kills itself, as the kernel would; the next opening believes nothing of the draft it finds."""
    file = write_reviews(tmp_path / "a.jsonl", repeat=100)
    whole = open_corpus(tmp_path / "reference", source(file), codepoints, nothing)
    for killed_at in (1, 3, 7):  # reading, encoding, hashing
        cache = tmp_path / f"cache {killed_at}"
        child = subprocess.run(
            [*CHILD, cache, file, "--kill-at", str(killed_at)], capture_output=True, check=False, timeout=250
        )
        assert child.returncode == -signal.SIGKILL, child.stderr.decode()
        assert [entry.suffix for entry in cache.iterdir()] == [".draft"]
        assert open_corpus(cache, source(file), codepoints, nothing).fingerprint == whole.fingerprint
        assert [entry.suffix for entry in cache.iterdir()] == [""]


@pytest.mark.slow
def test_a_file_larger_than_the_memory_left_is_loaded(tmp_path: Path) -> None:
    """150 MB of text with 64 MiB to spare, under the same kind of limit that the worker sets itself."""
    file = tmp_path / "large.tsv"
    with file.open("w", encoding="utf-8") as out:
        out.write("text\tlabel\n")
        for number in range(100_000):
            out.write(f"{number} {'很长的评论' * 100}\t{number % 2}\n")
    assert file.stat().st_size > 150e6
    arguments = [*CHILD, tmp_path / "cache", file, "--spare-bytes", str(64 << 20)]
    child = subprocess.run(arguments, capture_output=True, check=False, timeout=280)
    assert child.stdout.decode().startswith("100000 "), child.stderr.decode()


def test_every_row_knows_its_file_and_line(tmp_path: Path) -> None:
    """In the order of the data, whatever was left out or held out; a folder's texts by their own files."""
    first = tmp_path / "a.csv"
    first.write_text(
        "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip("甲 丙丁戊己庚", "0101010", strict=True))
    )
    second = tmp_path / "b.csv"
    second.write_text('label,text\n0,"辛\n辛"\n1,壬\n')
    beside = tmp_path / "folder"
    for name in ("0/x.txt", "0/y.txt", "1/z.txt"):
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).write_text(f"text {name}")
    several = msgspec.structs.replace(source(first, beside), train=[str(first), str(second)])
    corpus = open_corpus(tmp_path / "cache", several, codepoints, nothing)
    places = {text: corpus.train.where(np.array([row])) for row, text in enumerate(texts_of(corpus.train))}
    assert places == {
        **{text: f"{first}, line {line}" for text, line in zip("甲丙丁戊己庚", (2, 4, 5, 6, 7, 8), strict=True)},
        "辛\n辛": f"{second}, line 2",
        "壬": f"{second}, line 4",
    }
    assert corpus.train.where(np.arange(8)) == f"{first}, lines 2, 4, 5, 6, 7 and 8; {second}, lines 2 and 4"
    assert corpus.evaluation.where(np.array([2, 0])) == f"{beside}/0/x.txt, line 1; {beside}/1/z.txt, line 1"
    assert not corpus.is_held_out
    moved = tmp_path / "moved.csv"
    first.rename(moved)
    elsewhere = open_corpus(
        tmp_path / "cache", msgspec.structs.replace(several, train=[str(moved), str(second)]), codepoints, nothing
    )
    assert elsewhere.fingerprint == corpus.fingerprint, "a run goes on with data that lie elsewhere"
    assert elsewhere.train.where(np.array([0])) == f"{moved}, line 2"
    (beside / "1/z.txt").write_text("text 1/Z.txt, longer")
    later = open_corpus(
        tmp_path / "cache", msgspec.structs.replace(several, train=[str(moved), str(second)]), codepoints, nothing
    )
    assert later.fingerprint != corpus.fingerprint


# --------------------------------------------------------------------------------------------------------------------
# A vocabulary of characters


def tokenizer_of(texts: list[str], folder: Path, at_most: int = 30_000) -> Any:
    write_tokenizer(character_vocabulary(iter([texts]), at_most=at_most), folder, max_length=512)
    return transformers.AutoTokenizer.from_pretrained(str(folder))


@settings(max_examples=40)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=10), st.randoms())
def test_a_vocabulary_depends_on_the_texts_and_not_on_their_order(texts: list[str], random: Any) -> None:
    vocabulary = character_vocabulary(iter([texts]), at_most=100)
    random.shuffle(texts)
    assert character_vocabulary(([text] for text in texts), at_most=100) == vocabulary
    assert vocabulary[:5] == SPECIAL_TOKENS
    assert len(set(vocabulary)) == len(vocabulary) <= 100


@settings(max_examples=40)
@given(
    # without "[": who writes "[UNK]" gets it
    st.text(
        st.characters(codec="utf-8", categories=["L", "N", "P", "S", "M", "Zs"], exclude_characters="["),
        min_size=1,
        max_size=40,
    )
)
def test_every_character_that_was_learnt_is_known(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Of a text seen twice nothing is unknown, in whatever script, as long as its words are not endless."""
    folder = tmp_path_factory.getbasetemp() / "characters"
    folder.mkdir(exist_ok=True)
    tokenizer = tokenizer_of([text, text], folder)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_chinese_is_one_token_a_character_and_the_rest_too(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(["房间 Room 1,很好!ｱ"] * 2, tmp_path)
    assert tokenizer.tokenize("很好,room 1!") == ["很", "好", ",", "r", "##o", "##o", "##m", "1", "!"]
    assert tokenizer.pad_token_id == 0
    once = character_vocabulary(iter([["甲乙", "乙"]]), at_most=100)
    assert "乙" in once
    assert "甲" not in once


# --------------------------------------------------------------------------------------------------------------------
# The task

TINY: dict[str, Any] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "roberta": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 34,
        "pad_token_id": 1,
    },
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}


def model_folder(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    """A folder with a config.json alone."""
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": 500, **TINY[kind], **changes})
    config.save_pretrained(str(folder))
    return folder


def load(tmp_path: Path, model: Path | str, *, max_length: int = 32, checkpoint: Path | None = None, **task: Any) -> Prepared:
    wanted = Settings()
    wanted.task.model = str(model)
    reviews = tmp_path / "reviews.jsonl"
    wanted.task.train = str(task.pop("train", None) or (reviews if reviews.exists() else write_reviews(reviews)))
    wanted.training.max_length = max_length
    wanted.training.eval_share = 0.25
    wanted.training.seed = task.pop("seed", 42)
    wanted.task.accept = task.pop("accept", [])
    assert not task
    paths = RunPaths("test", tmp_path, tmp_path)
    return find_task("text-classification").load(wanted, paths, nothing, checkpoint=checkpoint)


def all_rows(examples: Any) -> np.ndarray[Any, Any]:
    return np.arange(len(examples), dtype=np.int64)


@pytest.mark.parametrize("kind", TINY)
@torch.no_grad()
def test_a_row_counts_the_same_alone_and_padded_among_others(tmp_path: Path, kind: str) -> None:
    prepared = load(tmp_path, model_folder(tmp_path / "model", kind))
    batch = prepared.train.batch(all_rows(prepared.train))
    together = prepared.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert together.shape == (len(prepared.train), 2)
    assert prepared.train.lengths.min() < prepared.train.lengths.max()
    for row in range(len(prepared.train)):
        alone = prepared.train.batch(np.array([row]))
        assert alone["attention_mask"].all()
        logits = prepared.model(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).logits
        torch.testing.assert_close(logits[0], together[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_the_tokenizers_own(tmp_path: Path, side: str) -> None:
    from memsup.worker.tasks.classification import TextRows
    from memsup.worker.tasks.tokens import Tokens

    tokenizer = tokenizer_of(POSITIVE + NEGATIVE, tmp_path)
    tokenizer.padding_side = side
    corpus = open_corpus(
        tmp_path / "cache", source(write_reviews(tmp_path / "a.jsonl")), lambda _texts, _folder: Tokens(tokenizer, 8), nothing
    )
    rows = TextRows(corpus.train, np.array([1, 0]).take, tokenizer, has_types=False)
    kept = [text for text, _ in labelled() if text in texts_of(open_plain(tmp_path).train)]
    indices = np.array([5, 0, 3, 5])
    wanted = tokenizer([kept[i] for i in indices], truncation=True, max_length=8, padding=True, return_tensors="pt")
    batch = rows.batch(indices)
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    assert torch.equal(batch["attention_mask"], wanted["attention_mask"])
    assert batch["labels"].tolist() == [1 - label for label in corpus.train.labels(indices)]
    assert rows.lengths.max() == 8


def open_plain(tmp_path: Path) -> Corpus:
    return open_corpus(tmp_path / "plain", source(tmp_path / "a.jsonl"), codepoints, nothing)


@given(st.lists(st.booleans(), min_size=11, max_size=11))
@settings(max_examples=20)
def test_any_cut_into_micro_batches_gives_the_whole_batchs_gradient(prepared_once: Prepared, cuts: list[bool]) -> None:
    task, prepared = find_task("text-classification"), prepared_once
    rows = all_rows(prepared.train)
    pieces = np.split(rows, [place + 1 for place, here in enumerate(cuts) if here])

    def gradient(parts: list[Any]) -> torch.Tensor:
        prepared.model.zero_grad()
        total = sum(task.weight(prepared.train, part) for part in parts)
        for part in parts:
            (task.loss(prepared.model, prepared.train.batch(part)) / total).backward()
        return torch.cat([p.grad.flatten() for p in prepared.model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(pieces), gradient([rows]), atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("task")
    return load(folder, model_folder(folder / "model"))


@torch.no_grad()
def test_metrics_are_those_of_all_rows_however_they_are_batched(prepared_once: Prepared) -> None:
    examples, model = prepared_once.train, prepared_once.model
    batch = examples.batch(all_rows(examples))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"]
    right = (logits.argmax(-1) == labels).float().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    for rows_at_once in (1, 5, 100):
        metrics = find_task("text-classification").new_metrics()
        for start in range(0, len(examples), rows_at_once):
            metrics.add(model, examples.batch(all_rows(examples)[start : start + rows_at_once]))
        result = metrics.result()
        assert result == pytest.approx(
            {"accuracy": right, "majority_accuracy": 0.5, "loss": loss, "rows": len(examples)}, rel=1e-4
        )


def test_new_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = load(tmp_path, model)
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's random numbers were used"
    torch.manual_seed(8)
    again, other = load(tmp_path, model), load(tmp_path, model, seed=43)
    weights = [prepared.model.state_dict() for prepared in (first, again, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not torch.equal(weights[0]["classifier.weight"], weights[2]["classifier.weight"])
    assert not first.model.training


def test_a_checkpoint_continues_without_the_model_it_came_from(tmp_path: Path) -> None:
    """Same rows, tokens and weights, from the cache or without it, and with the first model's folder gone."""
    model = model_folder(tmp_path / "model")
    first = load(tmp_path, model)
    with torch.no_grad():
        first.model.classifier.weight.add_(1)
    checkpoint = tmp_path / "checkpoint"
    first.model.save_pretrained(checkpoint)
    first.tokenizer.save_pretrained(checkpoint)
    made = {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "cache").iterdir()}
    for gone in (None, tmp_path / "cache", model):
        if gone is not None:
            shutil.rmtree(gone)
        again = load(tmp_path, model, checkpoint=checkpoint)
        assert again.fingerprint == first.fingerprint
        saved = first.model.state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in again.model.state_dict().items())
        assert again.model.config.label2id == first.model.config.label2id
        if made:
            assert {entry.name: entry.stat().st_mtime_ns for entry in (tmp_path / "cache").iterdir()} == made
            made = {}


def test_the_result_answers_with_the_labels_of_the_data(tmp_path: Path) -> None:
    prepared = load(tmp_path, model_folder(tmp_path / "model"))
    prepared.model.save_pretrained(tmp_path / "result")
    prepared.tokenizer.save_pretrained(tmp_path / "result")
    ask = transformers.pipeline("text-classification", model=str(tmp_path / "result"), device="cpu")
    answers = ask(["房间很干净", "太贵" * 1000], truncation=True)
    assert {answer["label"] for answer in answers} <= {"好评", "差评"}


def pretrained(tmp_path: Path, **changes: Any) -> Path:
    """A folder as save_pretrained leaves it: a BERT of half precision, tokenizer, and three labels of its own."""
    folder = tmp_path / "pretrained"
    tokenizer = tokenizer_of(POSITIVE + NEGATIVE, tmp_path)
    config = transformers.AutoConfig.for_model("bert", **{"vocab_size": len(tokenizer), **TINY["bert"], **changes})
    transformers.AutoModelForSequenceClassification.from_config(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_model_is_trained_in_full_precision_with_a_new_head(tmp_path: Path) -> None:
    folder = pretrained(tmp_path, num_labels=3)
    prepared = load(tmp_path, folder)
    assert {parameter.dtype for parameter in prepared.model.parameters()} == {torch.float32}
    assert prepared.model.config.num_labels == 2
    assert "new: classifier.bias, classifier.weight" in prepared.facts["model"]
    before = transformers.AutoModelForSequenceClassification.from_pretrained(folder).float().state_dict()
    for name, value in prepared.model.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(value, before[name])


def test_a_model_that_knows_the_labels_keeps_their_places(tmp_path: Path) -> None:
    """Data sort as 好评, 差评; the model was made with them the other way round, and its head must not be turned over."""
    folder = pretrained(tmp_path, id2label={0: "差评", 1: "好评"}, label2id={"差评": 0, "好评": 1})
    prepared = load(tmp_path, folder)
    assert prepared.model.config.id2label == {0: "差评", 1: "好评"}
    assert "new:" not in prepared.facts["model"]
    batch = prepared.train.batch(np.array([0]))
    assert prepared.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).replace(" ", "")[:2] == POSITIVE[0][:2]
    assert batch["labels"].tolist() == [1]


def test_a_head_keeps_its_order_and_its_spelling(tmp_path: Path) -> None:
    """Data of another case, width or with other blanks; the head's outputs must not be renamed in the order of the data."""
    folder = pretrained(tmp_path, id2label={0: "差 评Ａ", 1: "好评b"}, label2id={"差 评Ａ": 0, "好评b": 1})
    data = tmp_path / "other.csv"
    rows = "".join(f'"{text}",{label}\n' for texts, label in ((POSITIVE, "好评B"), (NEGATIVE, "差评a")) for text in texts)
    data.write_text("text,label\n" + rows, encoding="utf-8")
    prepared = load(tmp_path, folder, train=data)
    assert prepared.model.config.id2label == {0: "差 评Ａ", 1: "好评b"}
    assert "new:" not in prepared.facts["model"]
    weights = transformers.AutoModelForSequenceClassification.from_pretrained(folder).classifier.weight
    assert torch.equal(prepared.model.classifier.weight, weights.float())
    batch = prepared.train.batch(all_rows(prepared.train))
    first = prepared.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert first.replace(" ", "")[:2] == POSITIVE[0][:2]
    assert batch["labels"].tolist()[0] == 1
    assert set(batch["labels"].tolist()) == {0, 1}


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_a_head_for_other_labels_begins_anew_once_that_is_accepted(tmp_path: Path, kind: str) -> None:
    """What an output has learnt is not to go on under another name."""
    tokenizer = tokenizer_of(POSITIVE + NEGATIVE, tmp_path)
    config = transformers.AutoConfig.for_model(
        kind,
        **{"vocab_size": len(tokenizer), **TINY[kind], "id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}},
    )
    folder = tmp_path / "other"
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"the model's head has ham, spam, the data have 好评, 差评.*task.accept=head-labels"):
        load(tmp_path, folder)
    first, again = (load(tmp_path, folder, accept=[DoubtKind.HEAD_LABELS]) for _ in range(2))
    assert first.model.config.id2label == {0: "好评", 1: "差评"}
    before = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    drawn, same = first.model.state_dict(), again.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, drawn[name])}
    assert changed <= {"classifier.weight", "classifier.bias", "score.weight"}
    assert f"{'score' if kind == 'gpt2' else 'classifier'}.weight" in changed
    assert all(torch.equal(value, same[name]) for name, value in drawn.items()), "the seed alone draws it"


def test_a_model_of_characters_needs_no_vocabulary(tmp_path: Path) -> None:
    folder = tmp_path / "canine"
    config = transformers.CanineConfig(**TINY["bert"], num_hash_buckets=64, downsampling_rate=2, local_transformer_stride=16)
    transformers.CanineForSequenceClassification(config).save_pretrained(folder)
    transformers.CanineTokenizer().save_pretrained(folder)
    prepared = load(tmp_path, folder)
    text = prepared.tokenizer.decode(prepared.train.batch(np.array([0]))["input_ids"][0], skip_special_tokens=True)
    assert text in POSITIVE + NEGATIVE


def test_no_row_is_longer_than_the_model_has_positions(tmp_path: Path) -> None:
    """34 positions of a RoBERTa take 32 tokens; the rest belongs to padding."""
    prepared = load(
        tmp_path, model_folder(tmp_path / "model", "roberta", pad_token_id=1), max_length=400, train=long_texts(tmp_path)
    )
    assert prepared.train.lengths.max() == 32
    prepared.model(**{name: prepared.train.batch(np.array([0]))[name] for name in ("input_ids", "attention_mask")})


def long_texts(folder: Path) -> Path:
    file = folder / "long.csv"
    file.write_text("text,label\n" + "".join(f"{'好坏'[n % 2] * 300}{n},{n % 2}\n" for n in range(16)), encoding="utf-8")
    return file


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("wanted", ["somebody/kernel", "flash_attention_2", {"": "somebody/kernel"}, "no_such"])
def test_a_models_folder_does_not_say_which_code_computes_attention(key: str, wanted: object, tmp_path: Path) -> None:
    """A library that believed it would look for a kernel of that name at the hub, fetch and run it."""
    folder = model_folder(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: wanted}))
    config = load_config(str(folder))
    assert config._attn_implementation is None
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_folder_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    folder = pretrained(tmp_path)
    weights, names = folder / "model.safetensors", [*folder.glob("tokenizer*")]
    good = weights.read_bytes()

    def says(text: str) -> None:
        with pytest.raises(InputError, match=text):
            load(tmp_path, folder)

    weights.write_bytes(good[: len(good) // 2])
    says("is cut off")
    other = transformers.AutoConfig.for_model("distilbert", vocab_size=50, **TINY["distilbert"])
    transformers.AutoModel.from_config(other).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", weights)
    says("names such as .*, which no model of type bert has")
    weights.unlink()

    # What torch has saved in its older format shows no names before it is loaded.
    weights = folder / "pytorch_model.bin"
    tensors = safetensors.torch.load(good)
    others = safetensors.torch.load_file(tmp_path / "other" / "model.safetensors")
    torch.save(others, weights)
    says("names such as .*, which no model of type bert has")
    torch.save(others, weights, _use_new_zipfile_serialization=False)
    says("are not of the model that its config.json describes")
    torch.save(tensors, weights)
    config = folder / "config.json"
    described = json.loads(config.read_text())
    config.write_text(json.dumps(described | {"num_hidden_layers": described["num_hidden_layers"] + 1}))
    says(r"lack bert\.encoder\.layer\.\d\.\S+ of the model that its config.json describes")
    config.write_text(json.dumps(described | {"vocab_size": described["vocab_size"] + 1}))
    says(r"have bert\.embeddings\.word_embeddings\.weight in another shape")
    config.write_text(json.dumps(described))
    torch.save({name: tensor for name, tensor in tensors.items() if "word_embeddings" not in name}, weights)
    says(r"lack bert\.embeddings\.word_embeddings\.weight of the model")
    torch.save(tensors, weights)
    load(tmp_path, folder)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["〇〇", "××"])
    tokenizer.save_pretrained(folder)
    says("do not belong together")
    (folder / "tokenizer.json").write_text("{")
    says("tokenizer.json is cut off")
    for file in names:
        file.unlink()
    says("has weights but no tokenizer")
    vocabulary = folder / "vocab.json"  # a BERT's tokenizer reads a vocab.txt, and is empty without one
    vocabulary.write_text('{"a": 0}')
    (folder / "merges.txt").write_text("#version: 0.2\n")
    says("The tokenizer of .* has no vocabulary")
    vocabulary.unlink()
    (folder / "config.json").write_text('{"model_type": "no_such_model"}')
    says("which transformers .* does not know")


@pytest.mark.parametrize(
    ("is_zip", "says"),
    [
        (True, r"holds objects of a program \(posix.system\)"),
        (False, r"are a pickle with more in it than tensors.* Get the model"),
    ],
)
def test_a_pickle_that_could_run_something_is_refused_in_memsups_words(tmp_path: Path, is_zip: bool, says: str) -> None:
    """Torch's own text advises to load it without its guard, which "will likely succeed"."""

    class Program:
        def __reduce__(self) -> Any:
            return os.system, (f"touch '{tmp_path / 'was run'}'",)

    folder = pretrained(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Program()}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(InputError, match=says) as error:
        load(tmp_path, folder)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "was run").exists()


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    with pytest.raises(InputError, match="memsup runs none from a model's folder"):
        load(tmp_path, folder)
    assert not (tmp_path / "was run").exists()


def test_a_librarys_advice_is_not_passed_on(tmp_path: Path) -> None:
    """Whatever it says of a folder, there is no name to check and no network to wait for."""
    folder = pretrained(tmp_path)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"[UNK]": 0}}, "added_tokens": [{"id": 1}]}')
    with pytest.raises(InputError) as error:
        load(tmp_path, folder)
    assert re.fullmatch(
        rf"The model {folder} cannot be loaded \(\w+; the worker's log has more\): copy its config.json, weights and tokenizer "
        "again from where it came from, all of one version.",
        str(error.value),
    )


def test_a_model_that_mixes_samples_is_refused(prepared_once: Prepared) -> None:
    refuse_mixing(prepared_once.model)
    mixing = torch.nn.Sequential(prepared_once.model, torch.nn.BatchNorm1d(2))
    with pytest.raises(InputError, match=r"BatchNorm in 1 and 0 more"):
        refuse_mixing(mixing)


def test_bad_data_reach_the_user_as_a_sentence(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    file = tmp_path / "bad.csv"
    file.write_text("text,label\na,1\nb,1\n")
    with pytest.raises(InputError, match="same label '1'"):
        load(tmp_path, model, train=file)
    file.write_text("text,label\na,1\nb,2\n")
    with pytest.raises(InputError, match="too few different texts to hold some out"):
        load(tmp_path, model, train=file)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(InputError, match="There is no task 'regression'"):
        find_task("regression")
