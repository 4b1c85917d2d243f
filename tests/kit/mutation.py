"""Documents as somebody might have changed them: valid ones, with values put in the place of others, or bytes turned over."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st


class Raw(str):
    """JSON that no Python value stands for."""

    __slots__ = ()


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**300),
    *(0.5, -0.0, 5e-324, 1e15, 1e17, 4.1e9, 253402300800.0, 1e300, -1e300, Raw("1e999"), Raw("NaN"), Raw("-Infinity")),
    *(Raw("9" * 5000), Raw("[" * 3000), Raw('{"a":' * 3000), Raw("[" * 400 + "]" * 400)),
    *(
        "",
        "x",
        "\0",
        "\x1b]0;x\x07",
        "\u202e",
        "none",
        "9" * 20,
        "x" * 3000,
        Raw('"\\ud800"'),
        "🦊" * 64,
        "1e300",
        "auto",
        "%s",
        "{}",
    ),
    *([], {}, [[]], [None], [1, "x"], {"a": {}}, {"": 1}),
]


@st.composite
def json_changed(draw: st.DrawFn, documents: Sequence[bytes]) -> bytes:
    """One of `documents`, each of which is JSON, with a few of its values and keys changed; now and then some of its bytes."""
    root = [json.loads(draw(st.sampled_from(documents)))]
    for _ in range(draw(st.integers(1, 3))):
        _change(draw, root)
    written = _written(root[0])
    return draw(bytes_changed([written])) if draw(st.integers(0, 5)) == 0 else written


def _change(draw: st.DrawFn, root: list[Any]) -> None:
    places = list(_places(root))
    holder, key = draw(st.sampled_from(places))
    match draw(st.integers(0, 9)):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "\0", "v", "type"]))] = copy.deepcopy(holder[key])
        case 2:
            other, its = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(other[its])
        case 3 if isinstance(holder[key], list):
            holder[key] *= draw(st.sampled_from([2, 50]))
        case 4 if isinstance(holder[key], str):
            holder[key] += draw(st.sampled_from(["\x1b[2J", "\n", "é", "x" * 500]))
        case _:
            holder[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE)))


def _places(holder: Any) -> Any:
    """Where values lie: each container with a key or an index."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _written(value: Any) -> bytes:
    return _text(value).encode()


def _text(value: Any) -> str:
    match value:
        case Raw():
            return str(value)
        case dict():
            return "{" + ",".join(f"{json.dumps(key, ensure_ascii=False)}:{_text(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_text, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


@st.composite
def bytes_changed(draw: st.DrawFn, documents: Sequence[bytes]) -> bytes:
    """One of `documents` with bytes turned over, put in, doubled or cut off."""
    content = bytearray(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.integers(0, 4)):
            case 0:
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                content[place:place] = draw(
                    st.binary(max_size=8) | st.sampled_from([b"\0", b"\xff", b"\n", b'"', b"[" * 999, b"9" * 99])
                )
            case 2:
                del content[place : place + draw(st.integers(1, 40))]
            case 3:
                content[place:place] = content[place : place + draw(st.integers(1, 200))]
            case _:
                del content[place:]
    return bytes(content)


@st.composite
def lines_changed(draw: st.DrawFn, lines: Sequence[bytes]) -> bytes:
    """A file of JSON lines, most of them as they were, some changed."""
    few = draw(st.lists(st.sampled_from(lines), min_size=1, max_size=12))
    changed = draw(st.lists(json_changed(lines), min_size=1, max_size=3))
    file = b"\n".join(draw(st.permutations([*few, *changed]))) + draw(st.sampled_from([b"\n", b"", b'{"at":1']))
    return draw(bytes_changed([file])) if draw(st.integers(0, 9)) == 0 else file
