"""Importing the large libraries, a quarter to a third quicker than Python does by itself (benchmarks/starting.py)."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from memsup.shared.files import read_small

_SCANNER = "transformers.utils.import_utils"
"""The module with which transformers looks through the sources of all its models, to learn what each of them offers."""

_MOST_CONFIG_BYTES = 1 << 20


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


@contextlib.contextmanager
def quick_scan_of_transformers() -> Iterator[None]:
    """Has transformers, when it is imported inside, scan its sources once instead of twice, and not line by line.

    What it finds is the same. A version of transformers that scans in another way is left to do so.
    """
    finder = _ScannerFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def import_code_of(folder: Path) -> None:
    """Imports what transformers reads the model and the tokenizer in this folder with, which otherwise happens only when they
    are read. Where it cannot be told by `config.json`, nothing is imported.
    """
    try:
        config = msgspec.json.decode(read_small(folder / "config.json", _MOST_CONFIG_BYTES))
        kind = config["model_type"]
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return
    if not isinstance(kind, str) or not kind.isidentifier():
        return
    for part in ("configuration", "modeling", "tokenization"):
        with contextlib.suppress(Exception):  # it is called otherwise, is somebody else's, or wants what is not installed
            import_module(f"transformers.models.{kind}.{part}_{kind}")
    import_module("transformers.models.auto.tokenization_auto")


class _ScannerFinder:
    """Finds the scanner where Python would, and amends it as soon as it is loaded, before transformers goes on to use it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _SCANNER else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_amended(module: ModuleType) -> None:
            load(module)
            with contextlib.suppress(AttributeError):
                _amend(module)

        spec.loader.exec_module = load_amended  # type: ignore[method-assign]
        return spec


def _amend(scanner: Any) -> None:
    """Raises AttributeError if this version has nothing to amend."""
    structure, exports = scanner.create_import_structure_from_path.__wrapped__, scanner.fetch__all__

    def exports_from_last(source: str) -> list[str]:
        """The last line that begins with `__all__` counts, and each one before it takes its time."""
        found: list[str] = exports(source[source.rfind("\n__all__") + 1 :])
        return found

    # It remembers 128 folders; the models have 500, which are all gone from it when it comes to them again.
    scanner.create_import_structure_from_path = lru_cache(maxsize=None)(structure)
    scanner.fetch__all__ = exports_from_last
