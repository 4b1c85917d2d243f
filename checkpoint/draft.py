"""A checkpoint being written: a folder that nobody takes for one until its manifest is in it and it has been renamed.

Begun and cleared away by `Store.draft`, which also gives it its name at last.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from memsup.checkpoint import manifest as manifests
from memsup.checkpoint.durable import DurableFile
from memsup.checkpoint.header import INDEX_SUFFIX, SHARD_BYTES, encode_index, plan_shards
from memsup.checkpoint.manifest import File, Manifest
from memsup.checkpoint.reading import open_folder
from memsup.checkpoint.tensors import Tensor, write_shard
from memsup.folders import MARK
from memsup.shared.clock import monotonic_s, unix_s


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is on the disk, whatever happens now, and was read back from it."""

    path: Path
    step: int
    bytes: int
    seconds: float
    """What the save cost: the time from the beginning of the draft until `commit` returned."""
    note: str | None = None
    """What went wrong without harm, such as an old checkpoint that could not be deleted. None means that nothing did."""


class Draft:
    """A checkpoint that is being written. All methods raise OSError; `Store.draft` puts it into plain words.

    Names are plain file names, each used once; anything else raises ValueError.
    """

    def __init__(self, folder: Path, step: int, publish: Callable[[Draft, Manifest], Saved]) -> None:
        self.folder = folder
        """The draft's folder, for libraries that write files themselves; see `adopt`."""
        self.step = step
        self.began_s = monotonic_s()
        self._publish = publish
        self._files: dict[str, File] = {}
        self._fd = open_folder(folder)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file of `content`."""
        with self._new_file(name) as file:
            file.write(memoryview(content))
            self._files[name] = file.finish()

    def write_json(self, name: str, content: Any) -> None:
        """Anything that msgspec encodes. NaN and infinity become null, as JSON has neither."""
        self.write_bytes(name, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")

    def write_tensors(self, stem: str, tensors: Iterable[Tensor], *, in_one: bool = False) -> None:
        """`stem`.safetensors, or shards with an index, as Hugging Face names them; with `in_one` a single file of any size.
        Never holds more than a few pieces.
        """
        shards = plan_shards(stem, list(tensors), 1 << 62 if in_one else SHARD_BYTES)
        for name, shard in shards.items():
            with self._new_file(name) as file:
                write_shard(file, shard)
                self._files[name] = file.finish()
        if len(shards) > 1:
            self.write_bytes(stem + INDEX_SUFFIX, encode_index(shards))

    def adopt(self, name: str) -> None:
        """Takes in a file that a library wrote into `folder`. `commit` adopts whatever is still unknown there."""
        with self._new_file(name, exists=True) as file:
            file.take_content()
            self._files[name] = file.finish()

    def commit(self, metric: float | None = None) -> Saved:
        """Makes a checkpoint of the draft. `metric` is the evaluation's result, the greater the better; one that is not finite
        counts as none. None means that there was no evaluation.

        When this returns, the checkpoint is durable, every byte was read back from the disk and compared, and older checkpoints
        were deleted after that. Raises `Damaged` if the disk gave back something else.
        """
        for name in sorted(os.listdir(self._fd)):
            if name not in self._files and name != MARK:
                self.adopt(name)
        manifest = Manifest(
            step=self.step,
            created_unix_s=unix_s(),
            metric=float(metric) if metric is not None and math.isfinite(metric) else None,
            files=list(self._files.values()),
        )
        with DurableFile(self._fd, manifests.NAME) as file:
            file.write(memoryview(manifests.seal(manifest)))
            file.finish()
        os.fsync(self._fd)
        return self._publish(self, manifest)

    def close(self) -> None:
        """Lets go of the folder; removes nothing."""
        os.close(self._fd)

    def _new_file(self, name: str, *, exists: bool = False) -> DurableFile:
        if not manifests.is_file_name(name):
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint: a plain name of letters, digits, '.-_'")
        if name in self._files:
            raise ValueError(f"{name} is in this checkpoint already")
        if exists and not stat.S_ISREG(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode):
            raise ValueError(f"{name} is not a regular file, and a checkpoint has nothing else in it")
        return DurableFile(self._fd, name, exists=exists)
