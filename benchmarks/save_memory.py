"""Peak extra memory of a save and of a load, for a state of 1.2 GB: memsup, and what others need for the same.

    python benchmarks/save_memory.py [--folder DIR] [--output FILE]

Each is measured in a child process of its own: the state (BERT-base with Adam, fp32) is built, the kernel's record of the most
resident memory is reset (/proc/self/clear_refs), the state is saved, and the record is read again. The page cache is not part
of it: how much of the files lies there afterwards is a column of its own (fincore of util-linux).
Exits with 1 if memsup's save needs more than 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT_MIB = 64
WAYS = {
    "memsup: save": "save",
    "memsup: load into tensors that are there": "load",
    "`torch.save`": "torch",
    "safetensors `save_file`": "save_file",
    "safetensors `save` (bytes)": "save_bytes",
}


def measure(way: str, folder: Path) -> float:
    """MiB of resident memory that `way` needs beyond the state itself. In this process, which should have done nothing else."""
    import torch
    from save_stall import bert_base_with_adam, save_with_memsup, stored

    from memsup.checkpoint.store import Store
    from memsup.checkpoint.tensors import open_tensors

    state = bert_base_with_adam()
    warm_up = {"model": {"a": torch.ones(3)}, "optimizer": {"b": torch.ones(3)}}  # imports are not what is measured
    save_with_memsup(Store(folder / "warm"), 1, warm_up)
    flat = {f"{stem}.{name}": tensor for stem, tensors in state.items() for name, tensor in tensors.items()}
    store = Store(folder / "memsup")
    if way == "load":
        save_with_memsup(store, 1, state)
    before_kib = _reset_peak()
    match way:
        case "save":
            save_with_memsup(store, 1, state)
        case "load":
            info, _ = store.newest_valid()
            assert info is not None
            for stem, tensors in state.items():
                for tensor in open_tensors(info.path, stem):
                    (target,) = stored(tensor.name, tensors[tensor.name]).chunks()
                    place = 0
                    for chunk in tensor.chunks():
                        target[place : place + len(chunk)] = chunk
                        place += len(chunk)
        case "torch":
            torch.save(state, folder / "state.pt")
        case "save_file":
            from safetensors.torch import save_file

            save_file(flat, folder / "state.safetensors")
        case "save_bytes":
            from safetensors.torch import save

            (folder / "state.safetensors").write_bytes(save(flat))
    return (_status_kib("VmHWM") - before_kib) / 1024


def cached_mib(folder: Path) -> float | None:
    """The MiB of the files below `folder` that lie in the page cache. Returns None where that cannot be told."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    try:
        done = subprocess.run(["fincore", "-b", "-n", "-o", "RES", *files], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum(map(int, done.stdout.split())) / 2**20


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="also write the table there")
    parser.add_argument("--only", choices=WAYS.values(), help="measure one way, in this process, and print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        if options.only:
            print(json.dumps({"extra_mib": measure(options.only, Path(name)), "cached_mib": cached_mib(Path(name))}))
            return 0
        found = {}
        for what, way in WAYS.items():
            command = [sys.executable, __file__, "--only", way, "--folder", name]
            found[what] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    rows = [
        f"| {what} | {it['extra_mib']:.0f} | {'?' if it['cached_mib'] is None else round(it['cached_mib'])} |"
        for what, it in found.items()
    ]
    head = ["| state of 1.22 GB | peak extra resident memory, MiB | files left in the page cache, MiB |", "|---|---|---|"]
    table = "\n".join(head + rows)
    print(table)
    if options.output:
        options.output.write_text(table + "\n", encoding="utf-8")
    return int(found["memsup: save"]["extra_mib"] > LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())
