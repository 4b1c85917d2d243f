"""`memsup predict`: asks the model that a run has made about a text, two that belong together, or a file of them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from memsup.shared.commands import command
from memsup.shared.data.chat import Form
from memsup.shared.data.chat_check import fields_of
from memsup.shared.data.columns import listed, usual_text
from memsup.shared.data.errors import InputError
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import locate
from memsup.shared.data.tag_cells import as_words
from memsup.shared.data.tag_files import joined
from memsup.shared.model.adapters import ADAPTER_CONFIG
from memsup.shared.paths import RunPaths, absolute, paths_of
from memsup.shared.run_file import read_record
from memsup.shared.status import RunState
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.labelled import columns_of, lines_of, rows_of, write_labelled
from memsup.supervisor.client.prediction import ROWS_AT_ONCE, Predicted
from memsup.supervisor.client.prediction import predict as asked
from memsup.supervisor.words import plural

if TYPE_CHECKING:
    from memsup.shared.record import RunRecord

Ask: TypeAlias = Callable[[Iterator[Sequence[str]]], Iterator[Predicted]]
_Row = TypeVar("_Row")
UNKNOWN, NOT_FINISHED = 4, 3
_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".gz", ".arrow")


@click.command()
@run_option
@json_option
@click.option("-o", "--output", metavar="FILE", help="Where the rows of a file go with their labels: .csv, .tsv or .jsonl.")
@click.option("--text", "text", metavar="COLUMN", help="The file's column with the text.")
@click.option("--text-pair", "text_pair", metavar="COLUMN", help="The file's column with the second text.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.argument("words", nargs=-1, required=True, metavar="TEXT... | FILE")
def predict(
    *,
    run_name: str,
    as_json: bool,
    output: str | None,
    text: str | None,
    text_pair: str | None,
    device: str,
    words: tuple[str, ...],
) -> int:
    """Ask the model that a run has made, with the tokenizer, the length and the labels of its training.

    Each TEXT gets its label with its score; a run that was trained on two texts a row takes two. `-` reads a text a line from
    stdin. A FILE gives its rows with a label and a score each, as JSON lines, or in --output. A language model is asked a
    question with each TEXT, or line, and its answer is printed.
    Exit code: 0 done, 1 the model could not be asked, 2 bad input, 3 the run is not finished, 4 unknown run.
    """
    paths = paths_of(run_name)
    record, model = finished_model(paths)
    file = words[0] if len(words) == 1 and _is_file(words[0]) else None
    if file is None and (output or text or text_pair):
        raise click.UsageError("--output, --text and --text-pair are for a file of texts.")
    if record.settings.task.kind == "causal-lm":
        return _tell_answers(paths, record, model, words, file, device=device, as_json=as_json)
    is_pair = record.settings.task.text_pair is not None
    if is_pair and (words == ("-",) or (file is not None and _is_of_lines(file))):
        raise RefusedError("This run was trained on two texts a row, and a line is one: give a file with a column for each.")
    if text_pair and not is_pair:
        raise click.UsageError("This run was trained on one text a row: leave out --text-pair.")

    def ask(rows: Iterator[Sequence[str]]) -> Iterator[Predicted]:
        return asked(paths, record, model, rows, device=device, at_once=1 if is_typed else ROWS_AT_ONCE)

    is_typed = words == ("-",) and sys.stdin.isatty()  # then each line is answered
    if file is None:
        return _tell(_of_stdin() if words == ("-",) else iter(_typed(words, is_pair=is_pair)), ask, as_json)
    return _tell_file(file, _columns(file, record, text, text_pair, is_pair=is_pair), output, ask)


def finished_model(paths: RunPaths) -> tuple[RunRecord, Path]:
    """The record and the model of a run that has made one. Raises `RefusedError`."""
    status, record = observe(paths).status, read_record(paths.record)
    if status is None or record is None:
        raise RefusedError(f"There is no run {paths.name!r}. Those that there are: memsup list", UNKNOWN)
    if record.command is not None:
        raise RefusedError(
            f"Run {paths.name!r} runs a command of your own; where that keeps its model, it knows.", NOT_FINISHED
        )
    if status.state is not RunState.FINISHED or status.model_path is None:
        raise RefusedError(
            f"Run {paths.name!r} is {status.state}; its model is there when it is finished: {command('wait', paths.name)}",
            NOT_FINISHED,
        )
    model = Path(status.model_path)
    if not any((model / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise RefusedError(f"The model of run {paths.name!r} is not in {model} any more: copy it back.", 1)
    return record, model


# --------------------------------------------------------------------------------------------------------------------
# Texts that are typed


def _is_file(word: str) -> bool:
    """Whether a word names a file. Raises `RefusedError` where it is named like one that is not there."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.isfile(word):
            return True
    if word.lower().endswith(_ENDINGS) and " " not in word:
        raise RefusedError(f"There is no file {word}.")
    return False


def _typed(words: Sequence[str], *, is_pair: bool) -> list[Sequence[str]]:
    if not is_pair:
        return [(word,) for word in words]
    if len(words) % 2:
        raise RefusedError("This run was trained on two texts a row: give two, such as a premise and its hypothesis.")
    return [(words[place], words[place + 1]) for place in range(0, len(words), 2)]


def _of_stdin() -> Iterator[Sequence[str]]:
    with open(sys.stdin.fileno(), encoding="utf-8", errors="replace", closefd=False) as stdin:
        yield from ((line,) for line in lines_of(stdin))


def _tell(rows: Iterator[Sequence[str]], ask: Ask, as_json: bool) -> int:
    """Tells of each row as soon as the model has answered, so that a pipe may go on for as long as it likes."""
    asked_about: deque[Sequence[str]] = deque()
    found = ((asked_about.popleft(), predicted) for predicted in ask(_remembered(rows, asked_about)))
    if as_json:
        json_data({"schema": 1, "predictions": [_document(row) | _answer(predicted) for row, predicted in found]})
        return 0
    for row, predicted in found:
        score = "" if predicted.score is None else f"{predicted.score:.3f}"
        data(("no text" if predicted.label is None else predicted.label or "no label", score, " + ".join(row)))
    return 0


def _tell_answers(
    paths: RunPaths, record: RunRecord, model: Path, words: Sequence[str], file: str | None, *, device: str, as_json: bool
) -> int:
    if file is not None and not _is_of_lines(file):
        raise RefusedError("A language model is asked questions: give them as arguments, or one on each line of a .txt file.")
    if file is not None:
        rows: Iterator[Sequence[str]] = ([str(row["text"])] for row in rows_of(file))
    else:
        rows = _of_stdin() if words == ("-",) else iter(_typed(words, is_pair=False))
    asked_about: deque[Sequence[str]] = deque()
    said = asked(paths, record, model, _remembered(rows, asked_about), device=device, answers=_form(record))
    found = ((asked_about.popleft()[0], predicted.label) for predicted in said)
    if as_json:
        json_data({"schema": 1, "answers": [{"text": text, "answer": answer} for text, answer in found]})
        return 0
    for _, answer in found:
        data(answer or "")
    return 0


def _form(record: RunRecord) -> Form:
    """How the questions of the training data were written."""
    with contextlib.suppress(InputError):
        return fields_of(locate(record.settings.task.train or ""), record.settings.task).form
    return Form.MESSAGES


def _remembered(rows: Iterable[_Row], asked_about: deque[_Row]) -> Iterator[_Row]:
    """The rows; those that are not answered yet lie in `asked_about`."""
    for row in rows:
        asked_about.append(row)
        yield row


def _answer(predicted: Predicted) -> dict[str, Any]:
    """All that is known; spans of a model that tags words alone."""
    return {name: value for name, value in predicted._asdict().items() if name != "spans" or value is not None}


def _document(row: Sequence[str]) -> dict[str, str]:
    return dict(zip(("text", "text_pair"), row, strict=False))


# --------------------------------------------------------------------------------------------------------------------
# Files


def _columns(file: str, record: RunRecord, text: str | None, text_pair: str | None, *, is_pair: bool) -> list[str] | None:
    """The columns with the texts. Returns None where each line is a text. Raises InputError."""
    if _is_of_lines(file):
        return None
    task = record.settings.task
    first = next(read_rows(locate(str(absolute(file)))), None)
    if first is None:
        raise InputError(f"{file} has no rows: add some.")
    names = list(first.values)
    wanted = [text or (task.text if task.text in names else None) or usual_text(names), text_pair or task.text_pair]
    for name in filter(None, wanted):
        if name not in names:
            raise InputError(
                f"{file} has no column {name!r}. Its columns are {listed(names)}: name it with --text or --text-pair."
            )
    if wanted[0] is None:
        raise InputError(f"It is not clear which column of {file} holds the text; it has {listed(names)}. Name it with --text.")
    return [name for name in wanted[: 1 + is_pair] if name is not None]


def _text_of(cell: object) -> str:
    """The text of a cell; of a list of words, as data with tags have them, the text that they make."""
    words = as_words(cell) if isinstance(cell, list) else None
    return str(cell or "") if words is None else joined(words)[0]


def _is_of_lines(file: str) -> bool:
    return file.lower().endswith(".txt")


def _tell_file(file: str, texts: list[str] | None, output: str | None, ask: Ask) -> int:
    columns = columns_of(file)
    asked_about: deque[dict[str, Any]] = deque()
    rows = ([_text_of(row.get(name)) for name in texts or ["text"]] for row in _remembered(rows_of(file), asked_about))
    found = (asked_about.popleft() | {columns.label: p.label, columns.score: p.score and round(p.score, 6)} for p in ask(rows))
    if output is None:
        for row in found:
            json_data(row)
        return 0
    counts = write_labelled(absolute(output), columns, found)
    message(
        f"Written: {output}, {plural(sum(counts), 'row')}" + (f"; {counts[1]:,} of them without a text" if counts[1] else "")
    )
    return 0
