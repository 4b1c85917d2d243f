"""Small files of the kernel's that are read once: their text and their number, or None."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.kernel.kernel_file import number_of, text_of


@pytest.mark.parametrize(
    ("content", "number"),
    [(b"42\n", 42), (b"-1000\n", -1000), (b" 7 \n", 7), (b"", None), (b"max\n", None), (b"4 2\n", None), (b"\xff1", None)],
)
def test_a_number_is_a_number_alone(tmp_path: Path, content: bytes, number: int | None) -> None:
    """Anything else is not known, never nought."""
    file = tmp_path / "file"
    file.write_bytes(content)
    assert number_of(file) == number


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    """A file that is missing, and a folder in its place."""
    assert text_of(tmp_path / "missing") is None
    assert number_of(tmp_path / "missing") is None
    assert text_of(tmp_path) is None


@given(content=st.binary(max_size=64))
def test_no_content_raises(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Firmware writes what it likes."""
    file = tmp_path_factory.mktemp("kernel") / "file"
    file.write_bytes(content)
    text = text_of(file)
    assert text is not None
    assert text == text.strip()
    number_of(file)
