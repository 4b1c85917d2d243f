"""What the card does at best, as one line of JSON: bfloat16 matrix products of random numbers, and copies within its memory."""

from __future__ import annotations

import json

import torch

SIZE, TIMES = 8192, 20
COPIED_BYTES = 4 << 30


def seconds(work, times: int) -> float:  # type: ignore[no-untyped-def]
    """Of one time, after a few that do not count."""
    for _ in range(3):
        work()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / times


left, right = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
product = torch.empty_like(left)
source = torch.empty(COPIED_BYTES, device="cuda", dtype=torch.uint8).random_(256)
target = torch.empty_like(source)
print(
    json.dumps(
        {
            "flop_per_s": 2 * SIZE**3 / seconds(lambda: torch.matmul(left, right, out=product), TIMES),
            "copy_bytes_per_s": 2 * COPIED_BYTES / seconds(lambda: target.copy_(source), TIMES),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "device": torch.cuda.get_device_name(),
        }
    )
)
