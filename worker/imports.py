"""Importing the large libraries, a fifth quicker than Python does by itself (benchmarks/starting.py)."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_search_for_garbage() -> Iterator[None]:
    """Has Python not look for garbage inside, as it would a hundred times among what an import has just made.

    What is there at the end stays, and is not looked at again either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
