"""A training loop in torch that knows nothing of memsup, and holds much of the card.

    python any_program.py STEPS HELD_GIB

Its batches, dropout and held memory are random numbers of the card's own, with kernels that give the same bits each time. The
file `step` has the step that it is at; where a file `enough` is, it ends. Prints `digest STEP SHA256` of its weights and all
that it holds.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
from torch import nn

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)
torch.manual_seed(7)
steps, held_gib = int(sys.argv[1]), int(sys.argv[2])
held = [torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda") for _ in range(held_gib)]
model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(2048, 2048), nn.GELU(), nn.Dropout(0.1)))).cuda()
optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
pause_s = float(os.environ.get("STEP_S", "0.02"))
for step in range(steps):
    Path("step.new").write_text(str(step), encoding="ascii")
    os.replace("step.new", "step")
    batch = torch.randn(512, 2048, device="cuda")
    loss = (model(batch) - batch).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    held[step % held_gib].bitwise_xor_(step % 251)
    if step % 10 == 0:
        loss.item()
    time.sleep(pause_s)
    if Path("enough").exists():
        break
digest = hashlib.sha256()
for tensor in (*model.parameters(), *held):
    some = tensor.detach().flatten()[:: max(1, tensor.numel() // (1 << 22))]
    digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(str(int(tensor.detach().view(torch.uint8).sum(dtype=torch.int64))).encode())  # of each byte of it
print("digest", step, digest.hexdigest(), flush=True)
