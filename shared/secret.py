"""What nobody may read by chance: addresses with tokens and passwords in them. Pure.

A `Secret` is hidden from everything that turns a value into text: printing, formatting, logs, tracebacks, and every encoder,
which does not know it and fails. `reveal` gives the text, and is called in two places only: where `run.json` is written
(`record.py`), and where a message is handed to its sender (`supervisor/tell/messenger.py`).
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, Self

HIDDEN = "hidden"
_HOST_IS_PUBLIC = {"http", "https", "json", "jsons", "xml", "xmls", "form", "forms"}
"""The schemes of which the host names a machine. With others it may be a token, as in `tgram://TOKEN/CHAT`."""


class Secret:
    """A text that is never shown."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for those who have to use it."""
        return self._text

    def __str__(self) -> str:
        return HIDDEN

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def as_secret(kind: type, value: Any) -> Any:
    """What decodes a `Secret` (a `dec_hook` of msgspec). Raises TypeError, without the value, for anything but a text."""
    if kind is Secret and isinstance(value, Secret | str):
        return value if isinstance(value, Secret) else Secret(value)
    raise TypeError(f"expected text, got {type(value).__name__}")


def named(address: str) -> str:
    """The kind of address: all that may be said about every one."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+]{0,19})://", address)
    return scheme[1].lower() if scheme else "address"


def told_of(address: Secret) -> str:
    """Where a message goes, as far as it may be said: the kind of address, with the machine where that is no secret
    (`https://hc-ping.com`), or the file or variable that holds the address.
    """
    text = address.reveal()
    if text.startswith("file:"):
        return f"what {text[5:]} says" if is_file(text) else "a file"
    if text.startswith("env:"):
        return f"what the variable {text[4:]} says" if is_variable(text[4:]) else "a variable"
    kind = named(text)
    host = re.match(r"\w+://(?:[^/?#@]*@)?([\w.-]+)(?::\d+)?(?=[/?#]|$)[^@]*$", text)  # an @ behind it: a password with a slash
    return f"{kind}://{host[1]}" if host and kind in _HOST_IS_PUBLIC else kind


def is_variable(name: str) -> bool:
    """Whether `name` can be a variable's: a shell that put the content in its place has made something else of it."""
    return re.fullmatch(r"[A-Za-z_]\w{0,99}", name, re.ASCII) is not None


def is_file(address: str) -> bool:
    """Whether `file:…` names a file by its whole path. Written otherwise, as `file:$ADDRESS`, it may hold an address itself."""
    return re.match(r"file:[/~](?!/)", address) is not None and "://" not in address
