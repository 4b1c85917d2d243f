"""The msgpack of programs that have no msgspec says what msgspec's says, and survives whatever comes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.packing import MOST_DEPTH, PackingError, pack, unpack

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=400),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=30,
)


@given(VALUES)
def test_both_read_what_either_writes(value: object) -> None:
    assert msgspec.msgpack.decode(pack(value)) == value
    assert unpack(msgspec.msgpack.encode(value)) == value


@pytest.mark.parametrize("size", [31, 32, 255, 256, 65536])
def test_every_form_of_a_length_is_read_and_written(size: int) -> None:
    for value in ("x" * size, b"x" * size, [None] * size, {str(number): number for number in range(size)}):
        assert msgspec.msgpack.decode(pack(value)) == value
        assert unpack(msgspec.msgpack.encode(value)) == value


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_value_or_an_error(packed: bytes) -> None:
    try:
        value = unpack(packed)
    except PackingError:
        return
    assert unpack(pack(value)) == value or value != value  # noqa: PLR0124 - NaN, or something with one in it


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63) - 1, object(), {1: {2}}])
def test_what_cannot_be_packed_is_refused(value: object) -> None:
    with pytest.raises(PackingError):
        pack(value)


def test_a_tower_of_lists_is_refused_both_ways() -> None:
    tower: list[object] = []
    for _ in range(MOST_DEPTH + 2):
        tower = [tower]
    with pytest.raises(PackingError):
        pack(tower)
    with pytest.raises(PackingError):
        unpack(b"\x91" * 1000 + b"\xc0")
