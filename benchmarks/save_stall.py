"""Seconds that training stands still for a save: memsup against `torch.save` of the same state, in alternating pairs.

    python benchmarks/save_stall.py [--pairs 9] [--gap 4] [--folder DIR] [--output FILE]

The state is that of BERT-base with Adam in fp32 (1.2 GB). memsup's stall is what the worker waits for: hashing, fsync,
manifest, rename, reading all of it back from the disk, and deleting the oldest one. `torch.save` is timed alone and with the
fsync that makes it durable; it checks nothing.

In each pair who goes first alternates. Between two saves the machine computes for `--gap` seconds, as in training: right
after one another they would find the pages that the one before has just freed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from memsup.checkpoint.store import Store
from memsup.checkpoint.tensors import Tensor

DTYPES = {torch.float32: "F32"}


def bert_base_with_adam() -> dict[str, dict[str, torch.Tensor]]:
    """Parameters and Adam's two moments, in BERT-base's shapes (vocabulary of bert-base-chinese), filled with noise."""
    width, layers = 768, 12
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word": (21_128, width), "embeddings.position": (512, width)}
    for layer in range(layers):
        for name in ("query", "key", "value", "output"):
            shapes[f"layer.{layer}.{name}.weight"] = (width, width)
            shapes[f"layer.{layer}.{name}.bias"] = (width,)
        shapes[f"layer.{layer}.up.weight"] = (4 * width, width)
        shapes[f"layer.{layer}.up.bias"] = (4 * width,)
        shapes[f"layer.{layer}.down.weight"] = (width, 4 * width)
        shapes[f"layer.{layer}.down.bias"] = (width,)
        shapes[f"layer.{layer}.norm.weight"] = (width,)
        shapes[f"layer.{layer}.norm.bias"] = (width,)
    model = {name: torch.randn(shape) for name, shape in shapes.items()}
    moments = {f"{moment}.{name}": torch.randn(shape) for moment in ("exp_avg", "exp_avg_sq") for name, shape in shapes.items()}
    return {"model": model, "optimizer": moments}


def stored(name: str, tensor: torch.Tensor) -> Tensor:
    """A tensor on the CPU, as the store takes it: its own memory, nothing copied."""
    content = memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return Tensor(name, DTYPES[tensor.dtype], tuple(tensor.shape), lambda: iter([content]))


def save_with_memsup(store: Store, step: int, state: dict[str, dict[str, torch.Tensor]]) -> float:
    """Seconds until training goes on."""
    began = time.perf_counter()
    with store.draft(step) as draft:
        for stem, tensors in state.items():
            draft.write_tensors(stem, [stored(name, tensor) for name, tensor in tensors.items()])
        draft.commit()
    return time.perf_counter() - began


def save_with_torch(path: Path, state: dict[str, dict[str, torch.Tensor]]) -> tuple[float, float]:
    """Seconds without and with making it durable."""
    began = time.perf_counter()
    torch.save(state, path)
    saved_s = time.perf_counter() - began
    for place, flags in ((path, os.O_RDWR), (path.parent, os.O_RDONLY | os.O_DIRECTORY)):
        fd = os.open(place, flags)
        os.fsync(fd)
        os.close(fd)
    return saved_s, time.perf_counter() - began


def train(seconds: float) -> None:
    """Keeps the cores busy as a training does."""
    weights = torch.randn(1024, 1024)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        weights = torch.tanh(weights @ weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--gap", type=float, default=4.0, help="seconds of computing between two saves")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder; it should be a real disk)")
    parser.add_argument("--output", type=Path, help="also write the table there")
    options = parser.parse_args()
    state = bert_base_with_adam()
    size = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())

    seconds: dict[str, list[float]] = {"stall": [], "torch": [], "fsynced": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        store = Store(folder / "memsup")
        for pair in range(options.pairs + 1):
            found = {}
            for turn in (0, 1):
                train(options.gap)
                if (pair + turn) % 2 == 0:
                    found["stall"] = save_with_memsup(store, pair, state)
                else:
                    file = folder / f"{pair}.pt"
                    found["torch"], found["fsynced"] = save_with_torch(file, state)
                    file.unlink()
            if pair > 0:  # the first is for warming up
                print(f"pair {pair}: " + ", ".join(f"{what} {s:.2f} s" for what, s in found.items()), file=sys.stderr)
                for what, s in found.items():
                    seconds[what].append(s)

    ratios = [ours / theirs for ours, theirs in zip(seconds["stall"], seconds["fsynced"], strict=True)]
    rows = [
        ("memsup: hashed, durable, read back from the disk and compared, oldest deleted", "stall"),
        ("`torch.save`, then fsync", "fsynced"),
        ("`torch.save` alone (not durable, no hash)", "torch"),
    ]
    lines = [
        f"State of {size / 1e9:.2f} GB, {options.pairs} alternating pairs, {os.cpu_count()} cores, seconds:",
        "",
        "| | median | least | most |",
        "|---|---|---|---|",
        *(
            f"| {what} | {statistics.median(seconds[of]):.2f} | {min(seconds[of]):.2f} | {max(seconds[of]):.2f} |"
            for what, of in rows
        ),
        "",
        f"Stall of memsup / (`torch.save` + fsync): {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
    ]
    table = "\n".join(lines)
    print(table)
    if options.output:
        options.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
