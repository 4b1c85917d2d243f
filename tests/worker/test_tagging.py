"""Words with tags, learnt: the loss is that of the whole under any cut, spans are counted as the field counts them, and a saved
model answers in transformers' pipeline.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.asked_again import by_seqeval
from kit.gradients import check_any_cut
from kit.lone_supervisor import tiny_settings
from kit.one_life import StarvedTask, exhaustions, one_life, whole_life, without_dropout

from memsup.checkpoint.reading import verify
from memsup.shared.data.errors import InputError
from memsup.shared.data.tags import Sentence, Span, spans_of
from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.settings import Settings
from memsup.worker import train
from memsup.worker.tasks import Prepared, Task, find_task
from memsup.worker.tasks.tag_pieces import Pieces, names_of
from memsup.worker.tasks.tagging import SpanMetrics, Tagger

pytestmark = pytest.mark.slow  # torch and transformers take their seconds

NAMES, PLACES, OTHERS = ["anna", "bert berg", "carl"], ["rome", "new york"], ["saw", "in", "was", "with", "the", "unbelievably"]


def sentences(rows: int) -> list[tuple[list[str], list[str]]]:
    draw, found = random.Random(7), []
    for _ in range(rows):
        words, tags = [], []
        for _ in range(draw.randint(1, 6)):
            kind = draw.choice(["PER", "LOC", "O", "O"])
            said = draw.choice({"PER": NAMES, "LOC": PLACES, "O": OTHERS}[kind]).split()
            words += said
            tags += ["O"] if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (len(said) - 1)]
        found.append((words, tags))
    return found


def asked(folder: Path, rows: int = 40, **more: Any) -> Settings:
    wanted = tiny_settings(
        folder, task__kind="token-classification", task__train=folder / "data.conll", training__eval_share=0.25, **more
    )
    lines = ["\n".join(map("\t".join, zip(*one, strict=True))) + "\n" for one in sentences(rows)]
    (folder / "data.conll").write_text("\n".join(lines), encoding="utf-8")
    return wanted


def prepare(folder: Path) -> tuple[Task, Prepared]:
    wanted = asked(folder)
    task = find_task(wanted.task.kind)
    return task, task.load(wanted, RunPaths("test", folder, folder), lambda: None)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Prepared]:
    return prepare(tmp_path_factory.mktemp("task"))


def test_any_cut_gives_the_gradient_of_transformers_own_loss_of_the_whole(learnt: tuple[Task, Prepared]) -> None:
    task, prepared = learnt
    batch = prepared.train.batch(np.arange(len(prepared.train)))
    assert (batch["labels"] == -100).any()
    assert (batch["attention_mask"] == 0).any()
    check_any_cut(task, prepared)


def test_a_row_weighs_as_much_as_it_has_words(learnt: tuple[Task, Prepared]) -> None:
    task, prepared = learnt
    for row in range(len(prepared.train)):
        labels = prepared.train.batch(np.array([row]))["labels"]
        assert task.weight(prepared.train, np.array([row])) == int((labels != -100).sum())


TAGS = st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("PER", "LOC"))]), max_size=12)


@given(TAGS)
@example(["I-PER", "I-LOC", "E-LOC", "I-LOC"])
@example(["S-PER", "I-PER", "B-PER", "E-PER", "E-PER"])
def test_tags_in_any_order_are_the_spans_that_the_field_reads(tags: list[str]) -> None:
    parts = [("O", "") if tag == "O" else (tag[0], tag[2:]) for tag in tags]
    assert set(spans_of(parts).spans) == by_seqeval(tags)


@torch.no_grad()
def test_measures_are_those_of_all_rows_however_they_are_batched(learnt: tuple[Task, Prepared]) -> None:
    task, prepared = learnt
    names = prepared.model.config.id2label
    rows = np.arange(len(prepared.train))
    batch = prepared.train.batch(rows)
    said = prepared.model(**batch)
    spans: list[set[tuple[int, int, int, str]]] = [set(), set()]
    for row, labels in enumerate(batch["labels"]):
        asked = labels != -100
        for place, marks in enumerate((said.logits[row].argmax(dim=-1), labels)):
            spans[place] |= {(row, *span) for span in by_seqeval([names[mark] for mark in marks[asked].tolist()])}
    told, true = spans
    wanted = {
        "precision": len(told & true) / max(1, len(told)),
        "recall": len(told & true) / len(true),
        "f1": 2 * len(told & true) / (len(told) + len(true)),
        "loss": said.loss.item(),
        "rows": len(rows),
        "spans": len(true),
    }
    for kind in ("PER", "LOC"):
        of_kind = [{span for span in side if span[3] == kind} for side in (told, true)]
        wanted[f"f1_of_{kind}"] = 2 * len(of_kind[0] & of_kind[1]) / sum(map(len, of_kind))
    for at_once in (1, 5, 100):
        metrics = task.new_metrics()
        for part in np.split(rows, range(at_once, len(rows), at_once)):
            metrics.add(prepared.model, prepared.train.batch(part))
        assert metrics.result() == pytest.approx(wanted, rel=1e-4)
    shared = [task.new_metrics() for _ in range(2)]
    for rank, metrics in enumerate(shared):
        metrics.add(prepared.model, prepared.train.batch(rows[rank::2]))
    shared[0].add_counts(msgspec.msgpack.decode(msgspec.msgpack.encode(shared[1].counts())))
    assert shared[0].result() == pytest.approx(wanted, rel=1e-4)


def test_spans_that_are_told_as_they_are_have_an_f1_of_one() -> None:
    names = ["O", "B-PER", "I-PER"]
    labels = torch.tensor([[-100, 1, 2, -100, 0, 1], [-100, 0, 0, 1, -100, -100]])
    right: Any = lambda **_: type("Said", (), {"logits": torch.nn.functional.one_hot(labels.clamp(min=0), 3) * 9.0})  # noqa: E731
    metrics = SpanMetrics(names)
    metrics.add(right, {"labels": labels})
    found = metrics.result()
    assert (found["f1"], found["precision"], found["recall"], found["spans"], found["rows"]) == (1.0, 1.0, 1.0, 3.0, 2.0)


# --------------------------------------------------------------------------------------------------------------------
# Sentences and tokens


@pytest.fixture(scope="module")
def tokenizer(learnt: tuple[Task, Prepared]) -> Any:
    return learnt[1].tokenizer


def test_a_words_first_piece_has_its_mark(learnt: tuple[Task, Prepared], tokenizer: Any) -> None:
    _, prepared = learnt
    names = prepared.model.config.id2label
    tokens, labels = (prepared.train.batch(np.array([0]))[name][0] for name in ("input_ids", "labels"))
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    for piece, label in zip(pieces, labels.tolist(), strict=True):
        assert (label == -100) == (piece.startswith("##") or piece in ("[CLS]", "[SEP]"))
    told = [names[label] for label in labels.tolist() if label != -100]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert (text.split(), told) in [(words, tags) for words, tags in sentences(40)]


LETTERS = st.text("ab 京都.", min_size=1, max_size=40)


@given(LETTERS, st.data())
@settings(max_examples=60)
def test_a_long_text_is_divided_between_words_and_nothing_is_lost(text: str, data: st.DataObject) -> None:
    pieces = Pieces(characters(), 8)
    edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [Span(start, end, "X") for start, end in zip(edges[::2], edges[1::2], strict=False) if text[start:end].strip()]
    sentence = Sentence(text, tuple(spans), (), (), Path("x"), 1)
    whole = "".join(window.text for _, window in pieces.windows(text, (), spans))
    assert whole == text
    for start, window in pieces.windows(text, (), spans):
        assert len(window.tokens) <= 8
        assert window.tokens == characters()(window.text.rstrip(), truncation=True, max_length=8)["input_ids"]
        for unit, name in zip(window.units, names_of(sentence, window, start), strict=True):
            inside = [span for span in spans if span.start < start + unit.end and start + unit.start < span.end]
            assert (name == "O") == (not inside)


_characters: list[Any] = []


def characters() -> Any:
    """A BERT's tokenizer of a few characters."""
    if not _characters:
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "京", "都", "."]
        made = transformers.BertTokenizerFast(vocab={token: place for place, token in enumerate(vocabulary)})
        _characters.append(made)
    return _characters[0]


def test_a_tokenizer_that_cannot_tell_where_tokens_come_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which characters they come from"):
        Pieces(transformers.CanineTokenizer(), 16)
    with pytest.raises(InputError, match="leaves no room for a sentence"):
        Pieces(characters(), 2)


def test_the_saved_model_tags_in_a_pipeline(learnt: tuple[Task, Prepared], tmp_path: Path) -> None:
    _, prepared = learnt
    prepared.model.save_pretrained(tmp_path)
    prepared.tokenizer.save_pretrained(tmp_path)
    tagger = Tagger(str(tmp_path), None, "cpu")
    spoken, told = [" ".join(words) for words, _ in sentences(12)], 0
    for strategy, texts in (("first", spoken), ("simple", ["我爱北京天安门", "安娜在罗马。"])):
        pipeline = transformers.pipeline(
            "token-classification", model=str(tmp_path), device="cpu", aggregation_strategy=strategy
        )
        for text, spans in zip(texts, tagger.tagged(texts, 64), strict=True):
            said = [(one["entity_group"], one["start"], one["end"]) for one in pipeline(text)]
            assert said == [(span["label"], span["start"], span["end"]) for span in spans or ()]
            told += len(said)
    assert told, "a model from nothing says something"
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["architectures"] == ["BertForTokenClassification"]
    assert set(kept["id2label"].values()) == {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"}


def test_a_head_that_knows_the_labels_keeps_its_order(learnt: tuple[Task, Prepared], tmp_path: Path) -> None:
    _, prepared = learnt
    model = tmp_path / "tagger"
    names = {0: "I-LOC", 1: "O", 2: "b-per", 3: "B-LOC", 4: "I-PER"}
    prepared.model.save_pretrained(model)
    prepared.tokenizer.save_pretrained(model)
    config = json.loads((model / "config.json").read_text()) | {
        "id2label": names,
        "label2id": {name: place for place, name in names.items()},
    }
    (model / "config.json").write_text(json.dumps(config))
    wanted = asked(tmp_path, task__model=model)
    again = find_task(wanted.task.kind).load(wanted, RunPaths("test", tmp_path, tmp_path), lambda: None)
    assert again.model.config.id2label == names
    for row in range(3):
        former, now = (each.train.batch(np.array([row]))["labels"][0].tolist() for each in (prepared, again))
        words = [prepared.model.config.id2label[mark] for mark in former if mark != -100]
        assert words == [names[mark].replace("b-per", "B-PER") for mark in now if mark != -100]


def made(model: Any, before: Any, trainer: Any, end: str) -> Any:
    """A tokenizer of a kind, of a few sentences."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = before
    tokenizer.train_from_iterator(
        ["Anna Berg saw New York, unbelievably.", "我爱北京天安门 in 2008年", "हिन्दी भाषा"] * 20, trainer
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=end, eos_token=end)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_words_are_found_in_the_pieces_of_other_tokenizers(kind: str) -> None:
    from tokenizers import models, pre_tokenizers, trainers

    if kind == "bytes":
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"])
        pieces = Pieces(made(models.BPE(), pre_tokenizers.ByteLevel(), trainer, "</s>"), 128)
    else:
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
        pieces = Pieces(made(models.Unigram(), pre_tokenizers.Metaspace(), trainer, "</s>"), 128)
    for text, words in (
        ("Anna Berg saw New York, unbelievably.", "Anna Berg saw New York , unbelievably ."),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        (" in 2008年", "in 2008 年"),
    ):
        ((_, window),) = pieces.windows(text)
        assert [window.text[unit.start : unit.end] for unit in window.units] == words.split()


# --------------------------------------------------------------------------------------------------------------------
# In the loop


def test_running_out_of_memory_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    ends = []
    for fails in ((), ((2, "forward"), (4, "backward"))):
        with one_life(without_dropout(asked(tmp_path, training__micro_tokens=240)), name=f"starved-{len(fails)}") as life:
            life.task = StarvedTask(life.task, lambda where, rows, call, fails=fails: rows > 1 and (call, where) in fails)
            for _ in range(3):
                train.take_step(life)
            assert len(exhaustions(life)) == len(fails)
            weights = torch.cat([value.detach().flatten() for value in life.prepared.model.parameters()])
            ends.append((life.audit.digest.split(".")[0], weights))
    assert ends[0][0] == ends[1][0], "rows, loss weights and learning rates are those of the plan"
    assert torch.linalg.vector_norm(ends[0][1] - ends[1][1]) <= 1e-4 * torch.linalg.vector_norm(ends[0][1])


def test_the_peak_of_a_step_is_predicted(tmp_path: Path) -> None:
    wanted = asked(tmp_path, rows=200, hidden=64, training__epochs=4.0, training__micro_tokens=60, training__tune=True)
    with one_life(wanted, name="peak") as life:
        for _ in range(50):
            train.take_step(life)
        peak_bytes, predicted_bytes = life.measuring.last
        assert peak_bytes is not None
        assert predicted_bytes == pytest.approx(peak_bytes, rel=0.1)


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.nightly)])
def test_a_tagger_that_is_killed_ends_with_the_bits_of_the_undisturbed_run(kills: int, tmp_path: Path) -> None:
    draw = random.Random(kills)
    wanted = asked(tmp_path, checkpoint__every="1ms", training__epochs=2.0)
    ends = []
    for name, lives in (("undisturbed", [None]), ("killed", [*(draw.randint(5, 120) for _ in range(kills)), None])):
        finished = None
        for killed_after in lives:
            if finished is None:
                finished, _ = whole_life(wanted, name=name, killed_after=killed_after)
        assert finished is not None
        newest = max(run_paths(name).checkpoints.glob("step-*"))
        verify(newest)
        audit = (run_paths(name).state / "audit.txt").read_bytes()
        ends.append(
            (audit, finished.metrics, [(newest / part).read_bytes() for part in sorted(map(str, newest.glob("*.safetensors")))])
        )
    assert ends[0][2], "there are weights to compare"
    assert ends[0] == ends[1]
