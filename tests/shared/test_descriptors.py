"""Who has more files open than `select` knows numbers for can be waited for all the same."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from memsup.shared.descriptors import wait_ready


@pytest.mark.parametrize("number", [3, 1500])
def test_what_is_ready_is_found_whatever_its_number(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2000:
        if hard < 2000:
            pytest.skip("NOT RUN: no process here may have 2000 files open")
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    reads, writes = os.pipe()
    high = fcntl.fcntl(reads, fcntl.F_DUPFD_CLOEXEC, number)
    try:
        assert wait_ready([high], 0.0) == set()
        assert wait_ready([high], -1.0, writes=[writes]) == {writes}
        os.write(writes, b"x")
        assert wait_ready([high], None) == {high}
        os.read(reads, 1)
        os.close(writes)
        assert wait_ready([high], None) == {high}, "its end is seen as well"
        assert wait_ready([], 0.001) == set()
    finally:
        for fd in (reads, high):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
