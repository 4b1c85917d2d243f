"""A second program that wants its part of the card: takes what is free, and more as others give way, until it has it all.

    python second_program.py FRACTION

Prints one line of JSON when it has its part, or each ten seconds how much it has; leaves when its input ends.
"""

from __future__ import annotations

import json
import select
import sys
import time

import torch

PIECE_BYTES = 256 << 20

wanted = int(float(sys.argv[1]) * torch.cuda.mem_get_info()[1])
held: list[torch.Tensor] = []
began_s = told_s = time.monotonic()
while not select.select([sys.stdin], [], [], 0.1 if len(held) * PIECE_BYTES >= wanted else 0.0)[0]:
    has = len(held) * PIECE_BYTES
    if has < wanted:
        try:
            held.append(torch.empty(PIECE_BYTES, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            if select.select([sys.stdin], [], [], 0.05)[0]:
                break
        has = len(held) * PIECE_BYTES
        if has >= wanted or time.monotonic() - told_s > 1:
            told_s = time.monotonic()
            print(json.dumps({"holds_bytes": has, "has_all": has >= wanted, "after_s": told_s - began_s}), flush=True)
