"""Which versions of libraries compute here: machines that have others would compute something else, or not find each other."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def versions() -> dict[str, str]:
    """The versions by name. What a build of torch is for, as in 2.13.0+cpu, does not matter."""
    found = {}
    for name in ("memsup", "torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0][:64]
    return found
