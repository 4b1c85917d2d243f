"""Makes a corpus in a process of its own, which may be killed at a boundary or short of memory. Run by `test_data.py`.

python corpus_child.py CACHE DATA [--kill-at N] [--spare-bytes N]
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memsup.worker.tasks.corpus import Encoded, Source, Text, open_corpus


class Codepoints:
    """An encoder that needs no model: each character is a token."""

    vocabulary_size = 1 << 21

    def encode(self, texts: list[Text]) -> Encoded:
        tokens: Any = [np.frombuffer("".join(text).encode("utf-32-le"), np.uint32) for text in texts]
        return Encoded(tokens, None, np.array([not len(row) for row in tokens]), {})


def codepoints(texts: Iterator[list[Text]], folder: Path) -> Codepoints:
    return Codepoints()


def source(train: Path, evaluation: Path | None = None, *, seed: int = 1) -> Source:
    return Source(
        train=str(train),
        evaluation=None if evaluation is None else str(evaluation),
        text=None,
        label=None,
        eval_share=0.25,
        seed=seed,
        encoder="codepoints",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--spare-bytes", type=int)
    parser.add_argument("--modules", action="store_true", help="prints what was imported")
    arguments = parser.parse_args()
    left = arguments.kill_at or 0

    def boundary() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if arguments.spare_bytes:
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (held + arguments.spare_bytes, resource.RLIM_INFINITY))
    corpus = open_corpus(arguments.cache, source(arguments.data), codepoints, boundary)
    print(len(corpus.train) + len(corpus.evaluation), corpus.fingerprint)
    if arguments.modules:
        print(*sys.modules)


if __name__ == "__main__":
    main()
