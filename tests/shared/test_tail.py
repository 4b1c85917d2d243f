"""A file that grows is read on from where it was read to, across its rotation, and each of its lines once."""

from __future__ import annotations

import os
from pathlib import Path

from memsup.shared.tail import Tail


def read(tail: Tail) -> list[bytes]:
    return [line for line, _ in tail.lines()]


def append(file: Path, content: bytes) -> None:
    with file.open("ab") as opened:
        opened.write(content)


def test_each_line_is_read_once_also_where_the_file_is_let_go_between(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    tail = Tail(file, most_line_bytes=100)
    assert read(tail) == []
    append(file, b"one\ntw")
    for times in range(2):
        assert read(tail) == ([] if times else [b"one"])
        tail.let_go()
        assert str(file) not in [os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds()]
    append(file, b"o\n")
    assert read(tail) == [b"two"]
    file.rename(tmp_path / "older")
    append(tmp_path / "older", b"three\n")
    append(file, b"four\n")
    assert read(tail) == [b"three", b"four"]
    tail.let_go()
    file.write_bytes(b"5\n")
    assert read(tail) == [b"5"], "a shorter one is another"
    del tail
    assert str(file) not in [os.readlink(f"/proc/self/fd/{fd}") for fd in open_fds()], "nobody has it any more"


def test_what_is_too_long_is_passed_over_whether_or_not_it_is_let_go_in_its_middle(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    tail = Tail(file, most_line_bytes=100)
    append(file, b"a" * 150)
    assert read(tail) == []
    tail.let_go()
    append(file, b"a\nb\n")
    assert read(tail) == [b"b"]


def open_fds() -> list[str]:
    """Those that are open still when they are looked at."""
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]
