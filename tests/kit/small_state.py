"""A training state whose every byte follows from its step, so that what is loaded can be told from everything else.

As a script (`small_state.py FOLDER STEP`) it saves one, between two marks that a trace shows; test_checkpoint_kill.py runs it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from memsup.checkpoint import draft as drafts
from memsup.checkpoint import durable
from memsup.checkpoint.draft import Draft, Saved
from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.header import size_bytes
from memsup.checkpoint.reading import read_json
from memsup.checkpoint.store import Store
from memsup.checkpoint.tensors import Tensor, open_tensors

STEMS = {
    "model": {
        "embeddings.weight": ("F32", (300, 64)),
        "encoder.bias": ("F32", (7,)),
        "encoder.weight": ("BF16", (64, 65)),
        "mask": ("BOOL", (13,)),
        "scale": ("F64", ()),
        "empty": ("I64", (0, 4)),
    },
    "optimizer": {
        "embeddings.weight.exp_avg": ("F32", (300, 64)),
        "embeddings.weight.exp_avg_sq": ("F32", (300, 64)),
        "embeddings.weight.step": ("F32", ()),
    },
}
TOKENIZER = "tokenizer.json"


def scale_down(patch: Callable[[object, str, int], None]) -> None:
    """Shards, spans and pieces so small that this state takes every way that one of gigabytes takes. `patch`: setattr, or
    monkeypatch's.
    """
    patch(drafts, "SHARD_BYTES", 64 << 10)
    patch(durable, "SPAN_BYTES", 32 << 10)
    patch(durable, "PIECE_BYTES", 16 << 10)


def tensor(name: str, dtype: str, shape: tuple[int, ...], step: int) -> Tensor:
    def chunks() -> Iterator[memoryview]:
        yield memoryview(content(name, step, size_bytes(described)))

    described = Tensor(name, dtype, shape, chunks)
    return described


def content(name: str, step: int, size: int) -> bytes:
    return random.Random(f"{name} of step {step}").randbytes(size)


def write(draft: Draft, step: int) -> None:
    for stem, shapes in STEMS.items():
        draft.write_tensors(stem, [tensor(name, dtype, shape, step) for name, (dtype, shape) in shapes.items()])
    draft.write_json("state.json", {"step": step, "best": step / 7})
    (draft.folder / TOKENIZER).write_bytes(content(TOKENIZER, step, 5_000))  # as a library does
    draft.adopt(TOKENIZER)


def save(store: Store, step: int, *, metric: float | None = None) -> Saved:
    with store.draft(step) as draft:
        write(draft, step)
        return draft.commit(metric)


def assert_holds(path: Path, step: int) -> None:
    """What lies at `path` is the state of `step`, to the last byte."""
    for stem, shapes in STEMS.items():
        found = {read.name: (read.dtype, read.shape, b"".join(read.chunks())) for read in open_tensors(path, stem)}
        assert found.keys() == shapes.keys()
        for name, (dtype, shape) in shapes.items():
            assert found[name][:2] == (dtype, shape)
            assert found[name][2] == content(name, step, len(found[name][2]))
    assert read_json(path, "state.json") == {"step": step, "best": step / 7}
    assert (path / TOKENIZER).read_bytes() == content(TOKENIZER, step, 5_000)


def leftovers(store: Store) -> list[str]:
    """Names in the store's folder that are neither checkpoints nor set aside with a reason."""
    return [path.name for path in store.folder.iterdir() if path.name.startswith(".")]


BEGIN, END = "/mark/begin", "/mark/end"


def _mark(place: str) -> None:
    """Shows in a trace: a file that does not exist is asked for."""
    with suppress(FileNotFoundError):
        open(place).close()


if __name__ == "__main__":
    scale_down(setattr)
    store = Store(Path(sys.argv[1]))
    step = int(sys.argv[2])
    import shutil  # noqa: F401 - imported before the mark: what the store imports later is not what is traced

    _mark(BEGIN)
    try:
        outcome, code = str(save(store, step).note), 0
    except CheckpointError as error:
        outcome, code = f"{type(error).__name__}: {error}", 3
    _mark(END)
    print(outcome)
    sys.exit(code)
