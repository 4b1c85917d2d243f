"""What `supervisor/decide/estimate.py` says against what training takes, for three sizes of BERT, and the fit of its constants.

    python benchmarks/estimate.py [--fit]

Each model is trained for a step in a process of its own, by the worker's own parts, in float32 and bfloat16, with and without
activation checkpointing, at several shapes of the micro-batch; the peak of resident memory is the kernel's (VmHWM, reset before
each). `--fit` prints the constants that make the estimate nearest. Takes some three minutes and 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from memsup.supervisor.decide.estimate import BLOCK_NUMBERS, CONSTANTS, MIB, Shape, peak_bytes
from memsup.worker.__main__ import LIBRARIES

SIZES = {"2 x 128": (2, 128, 2, 512), "6 x 384": (6, 384, 6, 1536), "12 x 768": (12, 768, 12, 3072)}
SHAPES = ((1, 128), (4, 128), (16, 64), (1, 512), (2, 512))
VOCABULARY = 21128
WORKER_EXTRA_BYTES = 55 * MIB
"""What a worker holds that these processes do not, as its heartbeats showed: link, tokenizer, leftovers of preparing data."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(*options.child)
        return
    found: list[dict[str, Any]] = []
    for size in SIZES:
        for amp in ("off", "bf16"):
            environment = LIBRARIES | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"} | os.environ
            command = [sys.executable, __file__, "--child", size, amp]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found += [json.loads(line) for line in done.stdout.splitlines()]
    if options.fit:
        fit(found)
    table(found)


def measure(size: str, amp: str) -> None:
    """Prints a line of JSON for each shape."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    import memsup.worker.train  # noqa: F401 - what the worker imports counts as its base
    from memsup.memory import held
    from memsup.worker.compute.attention import attend_in_blocks
    from memsup.worker.compute.dropout import draw_by_row
    from memsup.worker.compute.embedding import add_in_place
    from memsup.worker.hardware import autocast, make_optimizer, place_model, set_activation_checkpointing, start_threads
    from memsup.worker.memory import hand_back

    layers, hidden, heads, intermediate = SIZES[size]
    start_threads(2, torch.device("cpu"))
    device = torch.device("cpu")
    hand_back()
    base = held().resident_bytes
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
    )
    model = BertForSequenceClassification(config)
    place_model(model, device)
    add_in_place(model)
    draw_by_row()
    attend_in_blocks()
    optimizer = make_optimizer(model, weight_decay=0.01)
    model.train()

    def micro_batch(rows: int, length: int) -> None:
        ids = torch.randint(5, VOCABULARY, (rows, length))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0  # rows differ in length
        with autocast(device, amp):
            loss = model(input_ids=ids, attention_mask=mask, labels=torch.zeros(rows, dtype=torch.long)).loss
        loss.backward()

    micro_batch(1, 8)
    optimizer.step()
    for checkpointing in (False, True):
        set_activation_checkpointing(model, checkpointing)
        for rows, length in SHAPES:
            micro_batch(rows, length)  # code for this shape is generated once
            hand_back()
            before = held().resident_bytes
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            micro_batch(rows, length)
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak = int(fields["VmHWM"].split()[0]) * 1024
            line = {
                "size": size,
                "layers": layers,
                "hidden": hidden,
                "heads": heads,
                "intermediate": intermediate,
                "parameters": sum(p.numel() for p in model.parameters()),
                "amp": amp,
                "checkpointing": checkpointing,
                "rows": rows,
                "length": length,
                "base_bytes": base,
                "before_bytes": before,
                "mapped_bytes": held().resident_bytes - held().anonymous_bytes,
                "peak_bytes": peak,
            }
            print(json.dumps(line), flush=True)


def shape(line: dict[str, Any]) -> Shape:
    fields = ("parameters", "layers", "hidden", "heads", "intermediate")
    return Shape(**{name: line[name] for name in fields}, embeddings=VOCABULARY * line["hidden"], positions=512)


def fit(found: list[dict[str, Any]]) -> None:
    """Least squares of the relative error, over the shapes without activation checkpointing."""
    import numpy as np

    for amp, constants in CONSTANTS.items():
        rows, wanted = [], []
        for line in found:
            if line["amp"] != amp or line["checkpointing"]:
                continue
            tokens, model = line["rows"] * line["length"], shape(line)
            activations = line["peak_bytes"] - line["before_bytes"]
            activations -= constants.copies * (model.parameters - model.embeddings)
            weight = 1 / (activations + 30 * MIB)
            known = model.layers * tokens * constants.intermediate * model.intermediate
            pairs = line["length"] ** 2
            block = min(line["rows"] * model.heads * pairs, max(BLOCK_NUMBERS, pairs))
            rows.append([weight * x for x in (model.layers * tokens * model.hidden, block, MIB)])
            wanted.append(weight * (activations - known))
        if rows:
            (hidden, attention, _), *_ = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)
            print(f"{amp}: hidden={hidden:.1f}, attention={attention:.1f}")


def table(found: list[dict[str, Any]]) -> None:
    """Mapped files, which the kernel takes back at need, are in VmHWM and no part of the estimate."""
    print("| model | amp | checkpointing | rows x length | estimate, MiB | measured, MiB | off by |")
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for line in found:
        said = peak_bytes(
            shape(line), amp=line["amp"], rows=line["rows"], length=line["length"], checkpointing=line["checkpointing"]
        )
        measured = line["peak_bytes"] - line["mapped_bytes"] + WORKER_EXTRA_BYTES
        off = said / measured - 1
        worst = max(worst, abs(off))
        cells = (line["size"], line["amp"], line["checkpointing"], f"{line['rows']} x {line['length']}")
        print(*("", *cells, said // MIB, measured // MIB, f"{off:+.1%}", ""), sep=" | ")
    print(f"\nAt most {worst:.1%} off.")


if __name__ == "__main__":
    main()
