"""A training loop in torch that calls memsup.guard, on the card or, without one, the CPU: its bits tell where it was gone on.

    python attached_program.py EPOCHS [FRACTION]

FRACTION of the card is what torch may take, far less than a whole batch needs; on a CPU no more than so much of a batch is
computed at once. Leaves `weights.pt`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
import torch
from torch import nn

import memsup

torch.use_deterministic_algorithms(True)
torch.manual_seed(1)
device = "cuda" if torch.cuda.is_available() else "cpu"
width, rows = (4096, 8192) if device == "cuda" else (64, 64)
if device == "cuda" and len(sys.argv) > 2:
    torch.cuda.set_per_process_memory_fraction(float(sys.argv[2]))
x, y = torch.randn(16 * rows, width // 4), torch.randint(0, 3, (16 * rows,))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=rows, shuffle=True)
layers = [nn.Linear(width // 4, width), *(layer for _ in range(6) for layer in (nn.GELU(), nn.Linear(width, width)))]
model = nn.Sequential(*layers, nn.Linear(width, 3)).to(device)


def most_rows(_model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if len(inputs[0]) > float(sys.argv[2]) * rows:
        raise torch.OutOfMemoryError("CUDA out of memory. (There is no CUDA: the proof is rehearsed.)")


if device == "cpu" and len(sys.argv) > 2:
    model.register_forward_pre_hook(most_rows)
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
run = memsup.guard(model=model, optimizer=optimizer, save_every_s=2)
for batch in run.steps(loader, epochs=int(sys.argv[1])):
    on_card = [part.to(device) for part in batch]
    run.backward(lambda part: nn.functional.cross_entropy(model(part[0]), part[1]), on_card)
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(float(os.environ.get("STEP_S", "0")))
digest = hashlib.sha256()
for parameter in model.parameters():
    digest.update(parameter.detach().cpu().numpy().tobytes())
with open("digest", "w", encoding="ascii") as file:
    file.write(digest.hexdigest())
torch.save(model.state_dict(), "weights.pt")
run.finish("weights.pt")
