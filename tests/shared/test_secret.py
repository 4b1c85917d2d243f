"""Promise: a secret is shown by nothing that turns a value into text; what is said of an address has nothing secret in it."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback
from collections.abc import Callable

import msgspec
import pytest

from memsup.shared.record import RunRecord, decode_record, encode_record
from memsup.shared.secret import Secret, named, told_of
from memsup.shared.settings import Notify, Settings
from memsup.shared.status import Wanted

TEXT = "json://user:s3cr3t@example.org/t0k3n?key=k3y"
HELD = Secret(TEXT)


def raised(value: object) -> str:
    try:
        raise ValueError(value)
    except ValueError:
        return traceback.format_exc()


SHOWN: dict[str, Callable[[object], str]] = {
    "str": str,
    "repr": repr,
    "format": "{:>40}".format,
    "percent": lambda value: f"{value!s} {value!r} {[value]} { ({'k': value}) }",
    "a struct": lambda value: repr(Settings(notify=Notify(urls=[value], ping_url=value))),
    "a log": lambda value: logging.LogRecord("x", 20, "", 0, "%s %r", (value, value), None).getMessage(),
    "a traceback": raised,
    "json with str": lambda value: json.dumps({"a": value}, default=str),
    "its own names": lambda value: str([name for name in dir(value) if not name.startswith("_")]),
}


@pytest.mark.parametrize("how", SHOWN)
def test_nothing_shows_it(how: str) -> None:
    assert not any(part in SHOWN[how](HELD) for part in ("user", "s3cr3t", "t0k3n", "k3y", "example"))


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode, json.dumps, pickle.dumps, msgspec.to_builtins])
def test_no_encoder_takes_it(encode: Callable[[object], object]) -> None:
    with pytest.raises(TypeError) as error:
        encode([HELD])
    assert "s3cr3t" not in str(error.value)


def test_it_is_the_same_after_a_copy_and_in_run_json() -> None:
    assert copy.deepcopy(HELD) == HELD == copy.copy(HELD)
    assert hash(copy.deepcopy(HELD)) == hash(HELD)
    assert Secret("other") != HELD
    record = RunRecord(
        run="default",
        run_id="x",
        created_unix_s=1.0,
        wanted=Wanted.RUNNING,
        tier="full",
        tier_reason="",
        settings=Settings(notify=Notify(urls=[HELD], ping_url=HELD)),
    )
    again = decode_record(encode_record(record))
    assert again == record
    assert again.settings.notify.urls[0].reveal() == TEXT


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (TEXT, "json://example.org"),
        ("https://hc-ping.com/t0k3n", "https://hc-ping.com"),
        ("https://user:s3cr3t@hc-ping.com:8443?t0k3n", "https://hc-ping.com"),
        ("json://user:s3c/r3t@example.org", "json"),  # a slash in the password ends the machine's name too early
        ("tgram://t0k3n/chat", "tgram"),
        ("s3cr3t", "address"),
        ("s3cr3t:t0k3n@example.org", "address"),
        ("//s3cr3t@example.org", "address"),
        ("s3cr3t t0k3n://x", "address"),
        ("env:MY_URLS", "what the variable MY_URLS says"),
        ("env:json://u:s3cr3t@h", "a variable"),
        ("file:/etc/urls", "what /etc/urls says"),
        ("file:json://u:s3cr3t@h", "a file"),
        ("file://user:s3cr3t@h", "a file"),
    ],
)
def test_what_is_told_of_an_address(address: str, told: str) -> None:
    assert told_of(Secret(address)) == told
    assert not any(part in named(address) for part in ("s3cr3t", "t0k3n", "user"))
