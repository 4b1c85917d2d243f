"""A hub id, looked up before `start` lets go: whether there is such a model, and what its names and its config.json say.

Only `start` does this, in its own process and for a few seconds at most. The worker fetches the model, with the hub's library.
No token is sent: what only its owner may see is left to the worker.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model import hub, libraries
from memsup.shared.model.config import check_config, replaced
from memsup.shared.model.folder import MOST_CONFIG_BYTES, ModelSummary
from memsup.shared.model.tokenizer import check_tokenizer
from memsup.shared.model.weights import find_weights
from memsup.shared.secret import Secret, told_of

WITHIN_S = 15.0
"""For everything together: a name that is not found, a proxy that does not answer, a line that is slow."""
_ONE_ANSWER_S = 6.0
_NOT_FOR_ALL = (401, 403)


class _Answer(NamedTuple):
    code: int
    body: bytes


class _UnreachableError(Exception):
    """The hub did not answer; the text is the reason as half a sentence."""


def look_up(
    model: str,
    found: ModelSummary,
    environment: Mapping[str, str] = os.environ,
    *,
    task: TaskKind = "text-classification",
) -> ModelSummary:
    """What the hub says of `model`, of which there is nothing on this machine yet. Raises InputError where there is no such
    model, where it cannot be trained here, and where the hub cannot be asked: the worker could not fetch it either.
    """
    if hub.is_offline(environment):
        raise InputError(
            f"{model} is neither a folder nor a model that was fetched before, and HF_HUB_OFFLINE forbids to fetch it: "
            "unset that, or give the model's folder."
        )
    address = hub.endpoint(environment)
    told = told_of(Secret(address))  # a mirror's address may have a password in it
    if not address.startswith(("https://", "http://")):
        raise InputError(f"HF_ENDPOINT is no address of a hub ({told}): set one such as https://huggingface.co, or unset it.")
    answers: dict[str, _Answer | _UnreachableError] = {}

    def ask() -> None:
        answers["config"] = _get(f"{address}/{quote(model)}/resolve/main/config.json")
        if isinstance(answers["config"], _Answer):
            answers["list"] = _get(f"{address}/api/models/{quote(model)}")

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(WITHIN_S)
    answer = answers.get("config", _UnreachableError(f"no answer within {WITHIN_S:.0f} s"))
    if isinstance(answer, _UnreachableError):
        raise InputError(
            f"{model} is no folder here, and {told} cannot be asked for it ({answer}): check the network and HF_ENDPOINT, "
            "or give a model's folder."
        )
    if answer.code in _NOT_FOR_ALL and hub.has_token(environment):
        return found
    if answer.code != http.client.OK:
        raise InputError(_why_not(model, told, answer.code, answers.get("list")))
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise InputError(f"The config.json of {model} at {told} is no JSON: choose another model.") from None
    config = check_config(model, content, task)
    if (names := _names(answers.get("list"))) is not None:
        find_weights(model, names, config)
        check_tokenizer(model, names, config, {}, libraries.is_installed)
    return replace(found, config=config, notes=replaced(config))


def _get(address: str) -> _Answer | _UnreachableError:
    """No more of the answer than a real one has."""
    try:
        with urllib.request.urlopen(address, timeout=_ONE_ANSWER_S) as answer:  # noqa: S310 - the scheme is the hub's own setting
            body = answer.read(MOST_CONFIG_BYTES + 1)
            return _Answer(answer.status, body if len(body) <= MOST_CONFIG_BYTES else b"")
    except urllib.error.HTTPError as error:
        return _Answer(error.code, b"")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return _UnreachableError(str(getattr(error, "reason", error)) or type(error).__name__)


def _why_not(model: str, told: str, code: int, listed: _Answer | _UnreachableError | None) -> str:
    if code in _NOT_FOR_ALL:
        return (
            f"There is no model {model} at {told} that everybody may read: check its name; if it is private or gated, "
            "log in with: hf auth login"
        )
    if code == http.client.NOT_FOUND:
        names = _names(listed)
        if names is not None and "adapter_config.json" in names:
            return f"{model} is an adapter (PEFT, LoRA) and not a whole model: merge it into its model, see docs/models.md."
        if names is not None:
            return f"{model} at {told} has no config.json, so it is no transformers model: choose another one."
        return f"There is no folder {model}, and no such model at {told}: check its name."
    return f"{told} answers {code} when asked for {model}: try again later, or give a model's folder."


def _names(listed: _Answer | _UnreachableError | None) -> list[str] | None:
    """The names of the model's files. It is None where the hub does not tell them."""
    if not isinstance(listed, _Answer) or listed.code != http.client.OK:
        return None
    try:
        content: Any = json.loads(listed.body)
        return [str(file["rfilename"]) for file in content["siblings"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
