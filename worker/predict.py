"""`python -m memsup.worker.predict`: asks a finished model, in a process of its own that lasts as long as the question.

Reads lines on stdin, each a JSON list of rows (a row is a list of one text or two), and answers each with a line on stdout:
`{"labels": […], "is_several": …, "rows": [[…] or null, …]}`, the probability of each label for each row, or its score under the
score's name; null for a row that makes no token of its own. A model that tags words answers `{"spans": [[…] or null, …]}`, each
span with label, text, start, end and score; a language model (`--answers`) `{"answers": ["…", …]}`. Or the last line is
`{"error": "one sentence"}`. Rows are computed beside others of the same length only: nothing is padded, so that no row's answer
depends on the others. Libraries' words go to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from memsup.memory import is_out_of_memory
from memsup.shared.data.chat import Form
from memsup.shared.data.errors import InputError
from memsup.shared.files import UnreadableError
from memsup.shared.log import FromLibraries, json_lines, log, log_to, to_standard_error
from memsup.shared.model.folder import read_config
from memsup.worker.imports import quick_scan_of_transformers, without_search_for_garbage

if TYPE_CHECKING:
    from memsup.worker.tasks.corpus import Text
    from memsup.worker.tasks.targets import Target

MOST_TOKENS = 4096
"""At most this many tokens are computed at once."""
NICER = 5
"""Who trains beside it goes first."""


def main() -> int:
    arguments = _arguments()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    log_to(None, json_lines(to_standard_error))
    logging.basicConfig(level=logging.INFO, handlers=[FromLibraries()])
    os.nice(NICER)
    if arguments.limit_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (arguments.limit_bytes, arguments.limit_bytes))
    os.environ.update({"HF_HUB_OFFLINE": "1"})  # all of it lies in the folder
    try:
        if arguments.answers is None:
            _answer_all(arguments, answers)
        else:
            _answer_questions(arguments, answers)
    except Exception as error:
        log.exception("Predicting ends here")
        _say(answers, {"error": _why(error, arguments.limit_bytes)})
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m memsup.worker.predict", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--limit-bytes", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--answers", choices=list(Form), type=Form)
    return parser.parse_args()


def _answer_all(arguments: argparse.Namespace, answers: TextIO) -> None:
    if _is_tagger(arguments.model):
        _tag_all(arguments, answers)
        return
    with without_search_for_garbage(), quick_scan_of_transformers():
        from memsup.worker.tasks.classification import load_finished
        from memsup.worker.tasks.targets import TARGETS

    model, tokens, has_types = load_finished(arguments.model, arguments.max_length)
    model.to(arguments.device)
    target = TARGETS[model.config.problem_type]
    labels = [str(model.config.id2label[place]) for place in range(len(model.config.id2label))]
    for line in sys.stdin:
        texts: list[Text] = [row[0] if len(row) == 1 else (row[0], row[1]) for row in json.loads(line)]
        _say(
            answers,
            {
                "labels": labels,
                "is_several": model.config.problem_type == "multi_label_classification",
                "rows": _shares(model, target, tokens, texts, has_types=has_types),
            },
        )


def _is_tagger(folder: str) -> bool:
    try:
        config = read_config(Path(folder))
    except (OSError, UnreadableError):
        return False  # whoever loads it says why not
    return isinstance(config, dict) and any("ForTokenClassification" in str(name) for name in config.get("architectures") or ())


def _tag_all(arguments: argparse.Namespace, answers: TextIO) -> None:
    with without_search_for_garbage(), quick_scan_of_transformers():
        from memsup.worker.tasks.tagging import Tagger

    tagger = Tagger(arguments.model, arguments.max_length, arguments.device)
    for line in sys.stdin:
        _say(answers, {"spans": tagger.tagged([row[0] for row in json.loads(line)], MOST_TOKENS)})


def _answer_questions(arguments: argparse.Namespace, answers: TextIO) -> None:
    with without_search_for_garbage(), quick_scan_of_transformers():
        from memsup.worker.tasks.answering import load_answering

    answering = load_answering(arguments.model)
    answering.model.to(arguments.device)
    for line in sys.stdin:
        _say(answers, {"answers": [answering.ask(row[0], arguments.answers) for row in json.loads(line)]})


def _shares(model: Any, target: Target, tokens: Any, texts: list[Text], *, has_types: bool) -> list[list[float] | None]:
    """The probability of each label for each text, or its score."""
    import torch

    found: list[list[float] | None] = [None] * len(texts)
    encoded = tokens.encode(texts)
    places = [place for place in range(len(texts)) if not encoded.tokenless[place]]
    by_length: dict[int, list[int]] = {}
    for place in places:
        by_length.setdefault(len(encoded.tokens[place]), []).append(place)
    for length, rows in by_length.items():
        at_once = max(1, MOST_TOKENS // length)
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            batch = {"input_ids": torch.tensor([encoded.tokens[place] for place in some])}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            if has_types and encoded.token_types is not None:
                batch["token_type_ids"] = torch.tensor([encoded.token_types[place] for place in some])
            with torch.inference_mode():
                logits = model(**{name: values.to(model.device) for name, values in batch.items()}).logits.float()
            for place, shares in zip(some, target.answers(logits).tolist(), strict=True):
                found[place] = shares
    return found


def _why(error: Exception, limit_bytes: int | None) -> str:
    if is_out_of_memory(error):
        limit = "" if not limit_bytes else f" of {limit_bytes >> 20:,} MiB"
        return (
            f"The model does not fit into the memory{limit} that may be used now: pause what else runs, or wait until it ends."
        )
    return str(error) if isinstance(error, InputError) else f"The model cannot be asked ({type(error).__name__}: {error})."


def _say(answers: TextIO, document: dict[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # taking torch down in order takes seconds
