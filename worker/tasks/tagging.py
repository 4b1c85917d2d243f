"""Token classification: the words of a text have labels, or spans of them have, and are learnt from examples.

Covers data, model, loss and metrics for any model that `AutoModelForTokenClassification` knows, with a fast tokenizer; from a
folder with a `config.json` alone it is trained from nothing, by characters. How rows are read and judged is in `shared/data`
(`tags.py`, `tags_check.py`), how a sentence becomes tokens in `tag_pieces.py`, and where they are kept in `sequences.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional

from memsup.shared.data import sources
from memsup.shared.data.errors import DoubtfulError, InputError
from memsup.shared.data.examples import at
from memsup.shared.data.tag_files import locate_tagged
from memsup.shared.data.tags import NO_TEXT, OUTSIDE, Fields, Sentence, find_fields, read_sentences, spans_of
from memsup.shared.data.tags_check import MOST_LABELS, TagEvidence, check_rows, judge, output_names
from memsup.shared.log import log
from memsup.shared.model.folder import ModelSource
from memsup.shared.model.head import Fit
from memsup.shared.paths import RunPaths
from memsup.shared.settings import Settings
from memsup.worker.plan.padding import Padding
from memsup.worker.tasks import Boundary, Metrics, Prepared, Trained
from memsup.worker.tasks.cache import heads
from memsup.worker.tasks.heads import begin_head_anew, doubts_refused, give_labels
from memsup.worker.tasks.pretrained import (
    Origin,
    about_model,
    find_padding,
    from_pretrained,
    load_config,
    load_model,
    load_tokenizer,
    longest_of,
    open_origin,
    refuse_mixing,
    tokenizer_name,
    tokenizer_of_characters,
)
from memsup.worker.tasks.sequences import IGNORED, LeftOut, SequenceCorpus, Source, StreamedSequences, open_sequences
from memsup.worker.tasks.sequences import Sequence as Row
from memsup.worker.tasks.stream import open_stream
from memsup.worker.tasks.sums import Counts, Sums
from memsup.worker.tasks.tag_pieces import NOTHING, Pieces, Window, names_of
from memsup.worker.tasks.targets import logits_of

_TAGGER = transformers.AutoModelForTokenClassification
_MOST_TOLD = 12
"""Of so many labels, the most frequent ones, the result has an F1 of their own."""
_TOKENIZER = "tokenizer"


class TagReader:
    """Makes sequences of the data's rows (`sequences.Reader`)."""

    def __init__(self, make_pieces: Callable[[Iterator[list[str]]], Pieces], settings: Settings, boundary: Boundary) -> None:
        """`make_pieces` makes of the training texts what makes tokens."""
        self._make_pieces, self._task, self._boundary = make_pieces, settings.task, boundary
        self.vocabulary_size = 0
        self._pieces: Pieces | None = None
        self._fields: Fields | None = None
        self._seen: list[TagEvidence] = []
        self._names: dict[str, int] = {}

    def go_on(self, part: sources.Source, names: Sequence[str], pieces: Pieces) -> None:
        """Reads on with what was found out before, of the rows that were judged. Raises InputError."""
        task = self._task
        self._fields = find_fields(part, text=task.text, label=task.label, labels=task.labels)
        self._names, self._pieces = {name: number for number, name in enumerate(names)}, pieces

    def look(self, parts: Sequence[sources.Source]) -> None:
        """Reads and judges all rows, and finds out what makes tokens of them. Raises InputError, and DoubtfulError for a doubt
        that nobody has accepted.
        """
        task = self._task
        self._fields = find_fields(parts[0], text=task.text, label=task.label, labels=task.labels)
        for part in parts:
            evidence = TagEvidence(self._fields)
            texts = self._taken(part, evidence)
            if self._pieces is None:
                self._pieces = self._make_pieces(texts)
            for _ in texts:  # what a tokenizer that is there already has not asked for
                pass
            evidence.complete = evidence.complete and not part.is_head
            check_rows(part, evidence, self._seen[0] if self._seen else None)
            self._seen.append(evidence)
        if doubts := judge(*self._seen).unsettled(task.accept):
            raise DoubtfulError(doubts)
        self._names = {name: number for number, name in enumerate(output_names(self._seen[0]))}
        assert self._pieces is not None
        self.vocabulary_size = self._pieces.vocabulary_size

    def _taken(self, part: sources.Source, evidence: TagEvidence) -> Iterator[list[str]]:
        """The texts of a part, each of which `evidence` takes in as it is asked for: a file is read once for both."""
        for sentence in self._sentences(part):
            evidence.takes(sentence)
            yield [sentence.text]
            if len(evidence.labels) > MOST_LABELS:
                return

    def read(self, part: sources.Source, *, trains: bool) -> Iterator[Row | LeftOut]:
        assert self._pieces is not None
        lost: Counter[str] = Counter()
        for sentence in self._sentences(part):
            if not sentence.text.strip():
                yield LeftOut(NO_TEXT)
                continue
            windows = list(self._pieces.windows(sentence.text, sentence.words, sentence.spans))
            begun = 0
            for start, window in windows:
                names = names_of(sentence, window, start)
                begun += sum(name.startswith("B-") for name in names)
                marks = [NOTHING] * len(window.tokens)
                for unit, name in zip(window.units, names, strict=True):
                    if name not in self._names:
                        raise _unknown(sentence, name)
                    marks[unit.token] = self._names[name]
                yield Row(window.tokens, marks, sentence.text, sentence.file, sentence.line, is_cut=len(windows) > 1)
            lost["spans"] += len(sentence.spans) - min(begun, len(sentence.spans))
        if lost["spans"]:
            log.info("Spans without a piece of their own", spans=lost["spans"], of=str(part), trains=trains)

    def names(self) -> list[str]:
        return list(self._names)

    def _sentences(self, part: sources.Source) -> Iterator[Sentence]:
        assert self._fields is not None
        for number, sentence in enumerate(read_sentences(part, self._fields)):
            if number % 256 == 0:
                self._boundary()
            yield sentence


class TokenClassification:
    """The task `token-classification`."""

    def __init__(self) -> None:
        self._outputs: list[str] = []

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
        task, training = settings.task, settings.training
        origin = open_origin(settings, checkpoint)
        _, kind, config, tokenizer, max_length = origin
        chosen = [task.kind, task.text, task.label, task.labels, task.accept]

        boundary()
        find = heads(locate_tagged, head_rows) if task.stream else locate_tagged
        with doubts_refused(paths.name):
            corpus = open_sequences(
                paths.cache,
                Source(
                    task=repr(chosen),
                    train=task.train or "",
                    evaluation=task.eval,
                    eval_share=training.eval_share,
                    seed=training.seed,
                    encoder=f"{tokenizer_name(task.model or origin.name)}, {max_length}",
                ),
                partial(_reader, origin, settings, boundary),
                boundary,
                padding_token=0 if tokenizer is None else int(tokenizer.pad_token_id),
                labels_are_tokens=False,
                find=find,
            )
            has_weights = kind is not ModelSource.CONFIG_ONLY
            fit, places = give_labels(config, corpus.names, task.kind, has_weights=has_weights, accept=task.accept)
        config.problem_type = None
        if tokenizer is None:
            tokenizer = from_pretrained(transformers.AutoTokenizer, str(corpus.folder / _TOKENIZER))
        boundary()
        model, new_layers = load_model(_TAGGER, origin.name, kind, config, tokenizer, training.seed)
        if fit is Fit.DOUBTFUL:
            begin_head_anew(model, _TAGGER, training.seed)
        refuse_mixing(model)
        self._outputs = [str(config.id2label[place]) for place in range(len(config.id2label))]
        train, evaluation = corpus.train, corpus.evaluation
        train.places = evaluation.places = places
        train.padding = evaluation.padding = Padding(tokenizer.padding_side)
        about_cuts: list[str] = []
        if padding is None:
            padding, about_cuts = find_padding(model, _mean_logits, train, evaluation, train.padding, boundary)
        train.padding = evaluation.padding = padding
        if padding is not Padding.NONE:
            tokenizer.padding_side = padding.value  # it is saved with the model, for whoever pads its rows
        stream = None
        if task.stream:
            source, pieces = find(task.train or ""), Pieces(tokenizer, max_length)
            reader = TagReader(lambda _: pieces, settings, boundary)
            reader.go_on(source, corpus.names, pieces)
            stream = open_stream(source, StreamedSequences(reader, train), settings, paths, boundary, longest=max_length)
        return Prepared(
            model=model.eval(),
            tokenizer=tokenizer,
            train=train,
            stream=stream,
            evaluation=evaluation,
            padding=padding,
            about_cuts=about_cuts,
            fingerprint=corpus.fingerprint,
            left_out=corpus.counts.left_out,
            beside={"shared_rows": float(corpus.counts.shared)} if corpus.counts.shared else {},
            facts={
                **_facts(corpus, max_length),
                "model": f"{about_model(model, origin.name, new_layers)}; {len(tokenizer):,} tokens",
            },
        )

    def loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = logits_of(model, batch)
        return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

    def weight(self, examples: Trained, indices: NDArray[np.int64]) -> float:
        return examples.weight(indices)

    def new_metrics(self) -> Metrics:
        return SpanMetrics(self._outputs) if OUTSIDE in self._outputs else ClassMetrics()


def _reader(origin: Origin, settings: Settings, boundary: Boundary, draft: Path, parts: Sequence[sources.Source]) -> TagReader:
    def make_pieces(texts: Iterator[list[str]]) -> Pieces:
        if origin.tokenizer is not None:
            return Pieces(origin.tokenizer, origin.max_length)
        folder = draft / _TOKENIZER
        folder.mkdir()
        return Pieces(tokenizer_of_characters(texts, origin, folder), origin.max_length)

    reader = TagReader(make_pieces, settings, boundary)
    reader.look(parts)
    return reader


def _unknown(sentence: Sentence, name: str) -> InputError:
    return InputError(
        f"{at(sentence.file, sentence.line)}: the label {name.removeprefix('B-').removeprefix('I-')!r} is none of the first "
        "rows, by which it is decided what is learnt of a stream: choose labels with task.labels, or put a row of each label "
        "among the first."
    )


def _mean_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model says of each row's own tokens, as a mean: rows × outputs."""
    mask = batch["attention_mask"][..., None]
    return (logits_of(model, batch) * mask).sum(dim=1) / mask.sum(dim=1)


def _facts(corpus: SequenceCorpus, max_length: int) -> dict[str, str]:
    train, evaluation, counts = corpus.train, corpus.evaluation, corpus.counts
    lengths = np.concatenate([train.lengths, evaluation.lengths])
    of_mark = corpus.marks_counted()
    begins = [(name.removeprefix("B-"), int(of_mark[place])) for place, name in enumerate(corpus.names) if name[:2] != "I-"]
    shown = ", ".join(f"{name} {number:,}" for name, number in sorted(begins, key=lambda one: -one[1])[:_MOST_TOLD])
    facts = {
        "data": f"{len(train):,} sentences to train on, {int(train.targets.sum(dtype=np.int64)):,} words",
        "labels": shown,
        "evaluation": f"{len(evaluation):,} sentences held out, equal texts all on one side",
        "length": f"median {np.median(lengths):.0f} tokens, {int(lengths.max())} at most",
    }
    if not corpus.is_held_out:
        facts["evaluation"] = f"{len(evaluation):,} sentences of their own; {counts.shared:,} are trained on too"
    if counts.cut:
        facts["divided"] = f"{counts.cut:,} parts of sentences that were longer than {max_length} tokens, divided between words"
    if counts.repeated:
        facts["repeated"] = f"{counts.repeated:,} sentences of the training data stand in it before"
    return facts


# --------------------------------------------------------------------------------------------------------------------
# What an evaluation measures


class _Words(Sums):
    """Loss and number of words, counted on the model's device."""

    summed = ("loss", "rows", "words")

    def __init__(self) -> None:
        self.loss: Any = 0.0
        self.rows = 0
        self.words = 0

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What is told and what is true of each token, shape (rows, tokens); `IGNORED` is true where nothing is asked."""
        logits, labels = logits_of(model, batch), batch["labels"]
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        self.loss = self.loss + losses.double().sum()
        told, true = logits.argmax(dim=-1).cpu().numpy(), labels.cpu().numpy()
        self.rows += len(true)
        self.words += int((true != IGNORED).sum())
        return told, true

    def result(self) -> dict[str, float]:
        return {"loss": float(self.loss) / self.words, "rows": float(self.rows)}


class SpanMetrics:
    """Exact spans, as CoNLL's evaluation and seqeval count them: a span is right where its first word, its last and its label
    are. Tags that a model puts in an order of no scheme are read as the data's are (`tags.spans_of`).
    """

    def __init__(self, outputs: Sequence[str]) -> None:
        self._parts = [(OUTSIDE, "") if name == OUTSIDE else (name[0], name[2:]) for name in outputs]
        self._words = _Words()
        self._right: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._true: Counter[str] = Counter()

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        for told_of_row, true_of_row in zip(*self._words.add(model, batch), strict=True):
            asked = true_of_row != IGNORED
            told, true = (set(spans_of([self._parts[mark] for mark in row[asked]]).spans) for row in (told_of_row, true_of_row))
            for counts, spans in ((self._told, told), (self._true, true), (self._right, told & true)):
                counts.update(label for _, _, label in spans)

    def counts(self) -> Counts:
        return {"words": self._words.counts(), "right": self._right, "told": self._told, "true": self._true}

    def add_counts(self, counts: Counts) -> None:
        self._words.add_counts(counts["words"])
        for own, other in ((self._right, "right"), (self._told, "told"), (self._true, "true")):
            own.update(counts[other])

    def result(self) -> dict[str, float]:
        right, told, true = (counts.total() for counts in (self._right, self._told, self._true))
        found = {
            "f1": 2 * right / max(1, told + true),
            "precision": right / max(1, told),
            "recall": right / max(1, true),
            **self._words.result(),
            "spans": float(true),
        }
        for label, _ in sorted(self._true.most_common(_MOST_TOLD)):
            found[f"f1_of_{label}"] = 2 * self._right[label] / (self._told[label] + self._true[label])
        return found


class ClassMetrics:
    """How many words have their class told."""

    def __init__(self) -> None:
        self._words = _Words()
        self._right = 0
        self._of_class: Counter[int] = Counter()

    def add(self, model: Any, batch: dict[str, torch.Tensor]) -> None:
        told, true = self._words.add(model, batch)
        self._right += int((told == true).sum())
        self._of_class.update(true[true != IGNORED].tolist())

    def counts(self) -> Counts:
        return {"words": self._words.counts(), "right": self._right, "of_class": self._of_class}

    def add_counts(self, counts: Counts) -> None:
        self._words.add_counts(counts["words"])
        self._right += counts["right"]
        self._of_class.update(counts["of_class"])

    def result(self) -> dict[str, float]:
        words = self._of_class.total()
        return {
            "accuracy": self._right / words,
            "majority_accuracy": max(self._of_class.values()) / words,
            **self._words.result(),
            "words": float(words),
        }


# --------------------------------------------------------------------------------------------------------------------
# A model that is asked


class Tagger:
    """A model that a run has made, asked about texts."""

    def __init__(self, folder: str, max_length: int | None, device: str) -> None:
        """Raises InputError."""
        config, tokenizer = load_config(folder), load_tokenizer(folder)
        model, _ = load_model(_TAGGER, folder, ModelSource.FOLDER, config, tokenizer, seed=0)
        self._model = model.eval().to(device)
        self._pieces = Pieces(tokenizer, longest_of(max_length, config, tokenizer))
        self._outputs = [str(config.id2label[place]) for place in range(len(config.id2label))]

    def tagged(self, texts: Sequence[str], most_tokens: int) -> list[list[dict[str, Any]] | None]:
        """The spans in each text, or of a model of word classes its words; None for a text without a word. At most
        `most_tokens` are computed at once, beside others of the same length only.
        """
        windows = [(row, start, window) for row, text in enumerate(texts) for start, window in self._pieces.windows(text)]
        found: list[list[dict[str, Any]] | None] = [None] * len(texts)
        by_length: dict[int, list[int]] = {}
        for place, (_, _, window) in enumerate(windows):
            if window.units:
                by_length.setdefault(len(window.tokens), []).append(place)
        spans: dict[int, list[dict[str, Any]]] = {}
        for length, places in by_length.items():
            at_once = max(1, most_tokens // length)
            for begin in range(0, len(places), at_once):
                some = places[begin : begin + at_once]
                tokens = torch.tensor([windows[place][2].tokens for place in some], device=self._model.device)
                with torch.inference_mode():
                    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
                    shares = logits_of(self._model, batch).softmax(dim=-1).cpu()
                for place, of_window in zip(some, shares, strict=True):
                    _, start, window = windows[place]
                    spans[place] = self._spans(window, start, of_window)
        for place, (row, _, _) in enumerate(windows):
            if place in spans:
                found[row] = [*(found[row] or []), *spans[place]]
        return found

    def _spans(self, window: Window, start: int, shares: torch.Tensor) -> list[dict[str, Any]]:
        """The score of a span is the mean probability of what is said of its words."""
        scores, marks = shares[[unit.token for unit in window.units]].max(dim=-1)
        names = [self._outputs[mark] for mark in marks.tolist()]
        if OUTSIDE in self._outputs:
            places = spans_of([(OUTSIDE, "") if name == OUTSIDE else (name[0], name[2:]) for name in names]).spans
        else:
            places = [(place, place + 1, name) for place, name in enumerate(names)]
        return [
            {
                "label": label,
                "text": window.text[window.units[first].start : window.units[last - 1].end],
                "start": start + window.units[first].start,
                "end": start + window.units[last - 1].end,
                "score": float(scores[first:last].mean()),
            }
            for first, last, label in places
        ]
