"""Whether NVIDIA's library is on this machine, as far as can be seen without loading it: it may hang or crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from memsup.shared.files import read_small

LIBRARY = "libnvidia-ml.so.1"
NO_DRIVER = "no NVIDIA driver found"
_LOADER_CACHE = Path("/etc/ld.so.cache")
_MOST_CACHE_BYTES = 16 << 20


def may_be_found(library: str) -> bool:
    """Whether the loader may find `library`, which it does not where this is False (ld.so(8) says where it looks)."""
    try:
        cache = read_small(_LOADER_CACHE, _MOST_CACHE_BYTES)
    except OSError:
        return True
    folders = os.environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    folders.append(f"{sys.base_prefix}/lib")  # an interpreter may look beside itself
    multiarch = getattr(sys.implementation, "_multiarch", "")
    folders += [f"{root}/{name}" for root in ("/lib", "/usr/lib") for name in ("", multiarch)] + ["/lib64", "/usr/lib64"]
    return library.encode() in cache or any(os.path.lexists(os.path.join(folder or ".", library)) for folder in folders)


def unwatched(why: str | None) -> str:
    """The sentence that says why no GPU is watched."""
    return f"No GPU is watched: {why}."
