"""What a finished run has told of its evaluation (accuracy; F1 of tags; loss of answers; of numbers loss and correlation),
counted again from its saved model: each text that was held out is read from its file once more and asked alone, as somebody
would who has nothing of memsup.

`conftest.py` does that for every run that a test leaves behind: at once where the test's process has torch anyway, else in
one process for all of them at the session's end, `python -m kit.asked_again FILE`. Which ones were asked and which were not,
and why, stands in the summary.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from memsup.shared.data.chat import Form, read_dialogues
from memsup.shared.data.chat_check import fields_of
from memsup.shared.data.columns import find_columns
from memsup.shared.data.examples import Example, read_examples
from memsup.shared.data.sources import locate
from memsup.shared.data.tag_files import locate_tagged
from memsup.shared.data.tags import find_fields, read_sentences
from memsup.shared.record import RecordError
from memsup.shared.run_file import read_record
from memsup.shared.settings import Settings

_LINE_BITS = 40
_MOST_WORK = 1 << 31
"""Rows times parameters. A larger run would take minutes of one core."""
_TOO_LARGE = "its model and rows are too large to be asked one by one"
_CLOSE = 0.05
"""With mixed precision the two highest outputs may change places where they are this near to each other."""


class Remembered(msgspec.Struct, frozen=True):
    """A run that a test has left behind."""

    test: str
    state: str
    outcome: str | None = None
    """`_ASKED`, or why it was not asked, or what was wrong. It is None where nobody has tried."""
    is_wrong: bool = False


_ASKED = "asked again"


def remember(state: Path, test: str, file: Path) -> None:
    """Writes down in `file` that `test` has left the run that keeps its state there, if that tells what can be counted again,
    and counts at once where this process has torch. Raises AssertionError where the run told another one.
    """
    if not _tells_accuracy(state):
        return
    outcome = (ask_again(state) or _ASKED) if "torch" in sys.modules else None
    _append(file, Remembered(test, str(state), outcome))


def remembered(file: Path) -> Iterator[str]:
    """The summary of what is written in `file`, a line each."""
    runs = [msgspec.json.decode(line, type=Remembered) for line in file.read_bytes().splitlines()] if file.exists() else []
    tried = [run for run in runs if run.outcome is not None]
    asked = sum(run.outcome == _ASKED for run in tried)
    left = {run.state for run in runs} - {run.state for run in tried}
    yield f"{asked} runs told what their saved models say, asked row by row; {len(tried) - asked + len(left)} were not asked"
    why = Counter(run.outcome for run in tried if run.outcome != _ASKED and not run.is_wrong)
    yield from (f"  {count}: {reason}" for reason, count in why.most_common())
    if left:
        yield f"  {len(left)}: the process that was to ask them has not got there"
    yield from (f"WRONG {run.test}: {run.outcome}" for run in tried if run.is_wrong)


def check_accuracy(state: Path) -> bool:
    """Counts again for the run that keeps its state there, and says whether there was one to count for. Raises AssertionError
    where the run told another one.
    """
    return _tells_accuracy(state) and ask_again(state) is None


def _tells_accuracy(state: Path) -> bool:
    told = _told(state)
    return (
        told is not None
        and _settings(state) is not None
        and not {"accuracy", "f1", "exact_match", "pearson", "perplexity"}.isdisjoint(told)
    )


def ask_again(state: Path) -> str | None:
    """Counts again for a run that tells something, or returns why that cannot be done. Raises AssertionError where it told
    another one.
    """
    model, corpora = state / "model", list((state / "cache").glob("corpus-*/evaluation.bin"))
    told, settings = _told(state), _settings(state)
    assert told is not None
    assert settings is not None
    if not any((model / name).exists() for name in ("config.json", "adapter_config.json")):
        return "it ended before its model was saved"
    if len(corpora) != 1:
        return "its rows are no longer known, or it has had several sets of them"
    if settings.task.kind == "token-classification":
        return _check_tags(model, corpora[0].parent, settings, told)
    if settings.task.kind == "causal-lm":
        return _check_answers(model, corpora[0].parent, settings, told)
    rows = _rows(corpora[0].parent, settings)
    if rows is None:
        return "its data have gone or changed"
    if settings.task.problem_type != "single_label_classification":
        check = _check_scores if settings.task.problem_type == "regression" else _check_several
        return check(model, rows, settings, told)
    right, close = _right(model, rows, settings)
    if right is None:
        return _TOO_LARGE
    said = round(told["accuracy"] * told["rows"])
    assert len(rows) == told["rows"], f"{state}: {told['rows']} rows were told, {len(rows)} were held out"
    assert abs(right - said) <= close, f"{state}: {said} of {len(rows)} were told as right, the saved model has {right}"
    return None


def _append(file: Path, run: Remembered) -> None:
    """A line in one write, as other processes write there as well."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, msgspec.json.encode(run) + b"\n")
    finally:
        os.close(fd)


def _told(state: Path) -> dict[str, float] | None:
    """The metrics of what became the model: the best result where that was to be kept and is there, or else the last one."""
    manifests = sorted((state / "checkpoints").glob("step-*/manifest.json"))
    if not manifests or not manifests[-1].with_name("state.json").exists():  # none, or those of somebody's own program
        return None
    last = msgspec.json.decode(manifests[-1].with_name("state.json").read_bytes())
    settings, best, evaluated = _settings(state), last.get("best"), last.get("evaluated")
    keeps_best = settings is not None and settings.training.keep == "best"
    if keeps_best and best and any((state / "checkpoints").glob(f"step-{best['step']:08}*")):
        return dict(best["metrics"])
    return evaluated["metrics"] if evaluated and evaluated["step"] == last["step"] else None


def _settings(state: Path) -> Settings | None:
    try:
        record = read_record(state / "run.json")
    except RecordError:
        return None
    return None if record is None or record.command is not None or record.settings.task.train is None else record.settings


def _rows(corpus: Path, settings: Settings) -> list[Example] | None:
    """The rows that were held out, from their files. None where those have gone or changed since."""
    task = settings.task
    train = locate(task.train or "") if _is_there(task.train) else None
    beside = None if train is None else train.evaluation if task.eval is None else _located(task.eval)
    source = train if beside is None else beside
    if train is None or source is None:
        return None
    columns = find_columns(train, task.text, task.label, task.text_pair, labels=task.labels, problem_type=task.problem_type)
    only = None if task.labels is None else frozenset(task.labels)
    examples = read_examples(source, columns, only=only, problem_type=task.problem_type)
    by_place = {(str(row.file), row.line): row for row in examples}
    places = _held_out(corpus)
    return [by_place[place] for place in places] if all(place in by_place for place in places) else None


def _held_out(corpus: Path) -> list[tuple[str, int]]:
    """File and line of each row that was held out."""
    used = np.fromfile(corpus / "evaluation.bin", np.int64)
    origins = np.fromfile(corpus / "origins.bin", np.int64)[used]
    names = (corpus / "names.bin").read_bytes().split(b"\0")
    return [(names[place >> _LINE_BITS].decode(), place & ((1 << _LINE_BITS) - 1)) for place in origins.tolist()]


def _located(value: str | list[str]) -> Any:
    return locate(value, evaluates=True) if _is_there(value) else None


def _is_there(value: str | list[str] | None) -> bool:
    names = [value] if isinstance(value, str) else value or []
    return bool(names) and all(name.startswith("package:") or Path(name).exists() for name in names)


def _check_scores(folder: Path, rows: list[Example], settings: Settings, told: dict[str, float]) -> str | None:
    """As `check_accuracy`, for a run that has learnt numbers."""
    outputs = _outputs(folder, rows, settings)
    if outputs is None:
        return _TOO_LARGE
    _, logits = outputs
    said, wanted = np.array([float(row) for row in logits]), np.array([float(row.label) for row in rows])
    off = {"loss": np.mean((said - wanted) ** 2), "pearson": np.corrcoef(said, wanted)[0, 1], "rows": len(rows)}
    rounding = np.finfo(np.float32).eps * np.abs(said).max() / said.std()  # of numbers nearly alike it is most of what differs
    for name, value in off.items():
        near = 0.05 if settings.training.amp != "off" else 1e-3 + 4 * rounding * (name == "pearson")
        assert abs(told[name] - value) <= near * max(1.0, abs(value)), f"{folder}: {name} {told[name]}, asked again {value}"
    return None


def _check_several(folder: Path, rows: list[Example], settings: Settings, told: dict[str, float]) -> str | None:
    """As `check_accuracy`, for a run that has learnt several labels a text: how many rows have just these."""
    outputs = _outputs(folder, rows, settings)
    if outputs is None:
        return _TOO_LARGE
    names, logits = outputs
    exact = close = 0
    for row, of_row in zip(rows, logits, strict=True):
        exact += {names[place] for place, value in enumerate(of_row.tolist()) if value > 0} == set(row.labels)
        close += bool((of_row.abs() < (_CLOSE if settings.training.amp != "off" else 1e-5)).any())
    assert told["rows"] == len(rows)
    assert abs(told["exact_match"] * len(rows) - exact) <= close + 1e-6, f"{folder}: {told}, {exact} asked again"
    return None


def _right(folder: Path, rows: list[Example], settings: Settings) -> tuple[int | None, int]:
    """How many rows the saved model is right about, and how many it cannot tell for sure in mixed precision. The first is None
    for a model too large to ask.
    """
    outputs = _outputs(folder, rows, settings)
    if outputs is None:
        return None, 0
    names, logits = outputs
    right = close = 0
    for row, of_row in zip(rows, logits, strict=True):
        first, second = of_row.topk(2).values.tolist()
        right += names[int(of_row.argmax())] == row.label
        close += settings.training.amp != "off" and first - second < _CLOSE * max(1.0, abs(first))
    return right, close


def _outputs(folder: Path, rows: list[Example], settings: Settings) -> tuple[dict[int, str], list[Any]] | None:
    """The names of the saved model's outputs, and what it says of each row, asked alone. None for a model too large to ask."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.problem_type == settings.task.problem_type
    if model.num_parameters() * len(rows) > _MOST_WORK:
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    most = min(settings.training.max_length or 512, tokenizer.model_max_length)
    found = []
    with torch.no_grad():
        for row in rows:
            texts = (row.text,) if row.text_pair is None else (row.text, row.text_pair)
            asked = tokenizer(*texts, truncation=True, max_length=most, return_tensors="pt")
            found.append(model(**asked).logits[0])
    return model.config.id2label, found


# --------------------------------------------------------------------------------------------------------------------
# Words with tags


def by_seqeval(tags: list[str]) -> set[tuple[int, int, str]]:
    """The spans of a sentence as seqeval 1.2.2 tells them, whose rules are those of CoNLL's own evaluation."""
    found, begin, before, kind_before = set(), 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        ends = before in "ES" or (before in "BI" and letter in "BSO") or (before != "O" and kind_before != kind)
        begins = letter in "BS" or (before in "ESO" and letter in "EI") or (letter != "O" and kind_before != kind)
        if before != "O" and ends:
            found.add((begin, place, kind_before))
        if begins and letter != "O":
            begin = place
        before, kind_before = letter, kind
    return found


def _check_tags(folder: Path, corpus: Path, settings: Settings, told: dict[str, float]) -> str | None:
    """As `check_accuracy`, for a run that tags words: its spans, of each sentence asked alone, by the first piece of each word.
    Nothing is counted where a sentence was divided.
    """
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    task, places = settings.task, _held_out(corpus)
    if len(set(places)) < len(places):
        return "some of its sentences were divided"
    train = locate_tagged(task.train or "")
    source = (locate_tagged(task.eval, evaluates=True) if task.eval else train.evaluation) or train
    fields = find_fields(train, text=task.text, label=task.label, labels=task.labels)
    held_out = {(str(row.file), row.line): row for row in read_sentences(source, fields)}
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    spans: list[set[tuple[int, int, int, str]]] = [set(), set()]
    if any(place not in held_out for place in places):
        return "its data have gone or changed"
    if model.num_parameters() * len(places) > _MOST_WORK:
        return _TOO_LARGE
    if not all(held_out[place].words for place in places):
        return "its sentences have no words, but spans of characters"
    for row, place in enumerate(places):
        sentence = held_out[place]
        asked = tokenizer(sentence.text, return_tensors="pt", return_offsets_mapping=True)
        firsts = {
            start: token for token, (start, end) in reversed(list(enumerate(asked.pop("offset_mapping")[0].tolist()))) if end
        }
        with torch.no_grad():
            said = model(**asked).logits[0].argmax(dim=-1).tolist()
        words = [(start, end) for start, end in sentence.words if start in firsts]
        spans[0] |= {(row, *span) for span in by_seqeval([model.config.id2label[said[firsts[start]]] for start, _ in words])}
        true = [
            next(
                (
                    f"{'B' if span.start == start else 'I'}-{span.label}"
                    for span in sentence.spans
                    if span.start <= start < span.end
                ),
                "O",
            )
            for start, _ in words
        ]
        spans[1] |= {(row, *span) for span in by_seqeval(true)}
    f1 = 2 * len(spans[0] & spans[1]) / max(1, sum(map(len, spans)))
    near = 0.02 if settings.training.amp != "off" else 1e-6
    assert abs(told["f1"] - f1) <= near, f"{folder}: F1 {told['f1']} was told, asked again {f1}"
    assert told["spans"] == len(spans[1])
    return None


# --------------------------------------------------------------------------------------------------------------------
# Dialogues


def loss_of_answers(model: Any, tokenizer: Any, rows: list[list[dict[str, str]]], most_tokens: int) -> tuple[float, int]:
    """The mean loss of what the assistant says in rows of messages, by transformers' own scores and as the template writes it,
    and of how many tokens.
    """
    import torch

    total, count = 0.0, 0
    for messages in rows:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        labels = torch.full_like(tokens, -100)
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = (
                    len(tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=asks))["input_ids"])
                    for said, asks in ((messages[:number], True), (messages[: number + 1], False))
                )
                labels[0, before:after] = tokens[0, before:after]
        tokens, labels = tokens[:, :most_tokens], labels[:, :most_tokens]
        with torch.no_grad():
            scores = model(tokens).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(scores, labels[0, 1:], reduction="sum"))
        count += int((labels != -100).sum())
    return total / count, count


def _check_answers(folder: Path, corpus: Path, settings: Settings, told: dict[str, float]) -> str | None:
    """As `check_accuracy`, for a run that learns answers: the mean loss of each of their tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    task, places, tokenizer = settings.task, _held_out(corpus), AutoTokenizer.from_pretrained(folder)
    if task.train is None or not _is_there(task.train) or (task.eval and not _is_there(task.eval)):
        return "its data have gone or changed"
    train = locate(task.train)
    source = (locate(task.eval, evaluates=True) if task.eval else train.evaluation) or train
    fields = fields_of(source, task)
    if fields.form is Form.TEXT or tokenizer.chat_template is None or "{% generation" in tokenizer.chat_template:
        return "its rows are plain text, or what of them is learnt is marked by the template"
    held_out = {(str(row.file), row.line): row for row in read_dialogues(source, fields)}
    if any(place not in held_out for place in places):
        return "its data have gone or changed"
    if not all(turn.is_learnt for place in places for turn in held_out[place].turns):
        return "some of its answers are not to be learnt"
    if (folder / "adapter_config.json").exists():
        import peft

        if not _is_there(task.model):
            return "the model that its adapters belong to has gone"
        base = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(base, folder).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if sum(parameter.numel() for parameter in model.parameters()) * len(places) > _MOST_WORK:
        return _TOO_LARGE
    rows = [[{"role": turn.role, "content": turn.content} for turn in held_out[place].turns] for place in places]
    positions = getattr(model.config, "max_position_embeddings", None)
    most = min(settings.training.max_length or 512, positions or 512, tokenizer.model_max_length)
    loss, targets = loss_of_answers(model, tokenizer, rows, most)
    near = 0.05 if settings.training.amp != "off" else 1e-4
    assert (told["rows"], told["targets"]) == (len(rows), targets)
    assert abs(told["loss"] - loss) <= near * max(1.0, loss), f"{folder}: loss {told['loss']} was told, asked again {loss}"
    assert abs(told["perplexity"] - np.exp(loss)) <= 2 * near * max(1.0, loss) * np.exp(loss)
    return None


# --------------------------------------------------------------------------------------------------------------------
# At the session's end


def main(file: Path) -> None:
    """Asks all runs in `file` that nobody has tried, and writes there what came of it."""
    import torch

    torch.set_num_threads(1)
    runs = [msgspec.json.decode(line, type=Remembered) for line in file.read_bytes().splitlines()]
    tried = {run.state for run in runs if run.outcome is not None}
    for run in {run.state: run for run in runs if run.state not in tried}.values():
        outcome, is_wrong = None, False
        try:
            state = Path(run.state)
            outcome = ask_again(state) if _tells_accuracy(state) else "its folder has gone since"
        except Exception as error:  # of one run; the others are asked all the same
            outcome, is_wrong = f"{type(error).__name__}: {error}", True
        _append(file, msgspec.structs.replace(run, outcome=outcome or _ASKED, is_wrong=is_wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
