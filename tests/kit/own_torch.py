"""Training programs of a person's own in torch, with accelerate and with Lightning, each of which drops out, shuffles and adds
gradients up, so that its weights tell whether it was gone on with in the right place. With `DIES_AT=17` they die once, there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.cli_process import memsup
from kit.own_program import printed

TORCH = """
import os, time, torch
from torch import nn
import memsup

torch.manual_seed(1)
torch.set_num_threads(1)
x, y = torch.randn(40, 10), torch.randint(0, 3, (40,))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4, shuffle=True)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
run = memsup.guard(model=model, optimizer=optimizer, scheduler=scheduler, save_every_s=0.2)
with open("began", "a") as file:
    file.write(f"{run.step} ")
for inputs, labels in run.steps(loader, epochs=3):
    loss = nn.functional.cross_entropy(model(inputs), labels) / 3
    loss.backward()
    if (run.step + 1) % 3 == 0:
        optimizer.step(); scheduler.step(); optimizer.zero_grad()
    run.tell(loss=loss)
    if "DIES_AT" in os.environ and run.step + 1 == int(os.environ["DIES_AT"]):
        time.sleep(0.25)
    if os.environ.get("DIES_AT") == str(run.step) and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
torch.save(model.state_dict(), "weights.pt")
run.finish("weights.pt")
"""

RANKED = """
import os, torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import memsup

torch.manual_seed(1)
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
x, y = torch.randn(48, 10), torch.randint(0, 3, (48,))
data = torch.utils.data.TensorDataset(x[rank::count], y[rank::count])
loader = torch.utils.data.DataLoader(data, batch_size=4)
model = DistributedDataParallel(nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3)))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
run = memsup.guard(model=model, optimizer=optimizer, save_every_s=0)
short_of_memory = {"forward": (2, 2), "backward": (4, 1), "evaluation": (5, 2)} if rank == 1 else {}


def fails(where, rows):
    step, most = short_of_memory.get(where, (-1, 0))
    if run.step == step and rows > most:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: as a test has it")


def scores_of(part):
    scores = model(part)
    fails("forward" if torch.is_grad_enabled() else "evaluation", len(part))
    if scores.requires_grad:
        scores.register_hook(lambda _: fails("backward", len(part)))
    return scores


for batch in run.steps(loader, epochs=3):
    if os.environ.get("DIES_AT") == f"{rank} {run.step}" and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
    run.backward(lambda part: nn.functional.cross_entropy(scores_of(part[0]), part[1]), batch)
    if run.step % 2:
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert len(run.predict(scores_of, batch[0])) == 4
if rank == 0:
    torch.save(model.module.state_dict(), "weights.pt")
    run.finish("weights.pt")
"""

RANKED_BY_ONE = """
import torch
from torch import nn

torch.manual_seed(1)
x, y = torch.randn(48, 10), torch.randint(0, 3, (48,))
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
for step in range(18):
    rows = slice(8 * (step % 6), 8 * (step % 6) + 8)
    nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
    if step % 2:
        optimizer.step()
        optimizer.zero_grad()
torch.save(model.state_dict(), "weights.pt")
"""

COMPUTED_IN_PARTS = """
import os, torch
from torch import nn
import memsup

torch.manual_seed(1)
torch.set_num_threads(1)
x, y = torch.randn(4096, 64), torch.randint(0, 3, (4096,))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2048, shuffle=True)
model = nn.Sequential(nn.Linear(64, 8192), nn.GELU(), nn.Linear(8192, 64), nn.Linear(64, 8192), nn.GELU(), nn.Linear(8192, 3))
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
run = memsup.guard(model=model, optimizer=optimizer, save_every_s=0)
for batch in run.steps(loader, epochs=1):
    if os.environ.get("DIES_AT") == str(run.step) and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
    with torch.no_grad():
        print(run.predict(lambda part: model(part[0]), (torch.cat([x, x]), torch.cat([y, y]))).shape)
    loss = run.backward(lambda part: nn.functional.cross_entropy(model(part[0]), part[1]), batch)
    optimizer.step()
    optimizer.zero_grad()
torch.save(model.state_dict(), "weights.pt")
run.finish("weights.pt")
"""

ACCELERATED = """
import os, time, torch
from torch import nn
from accelerate import Accelerator
import memsup


def collate(rows):
    inputs = torch.stack([row[0] for row in rows])
    return inputs * (torch.rand_like(inputs) > 0.2), torch.stack([row[1] for row in rows])


torch.manual_seed(1)
torch.set_num_threads(1)
data = torch.utils.data.TensorDataset(torch.randn(40, 10), torch.randint(0, 3, (40,)))
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
accelerator = Accelerator(gradient_accumulation_steps=3, cpu=True)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
run = memsup.guard(accelerator, save_every_s=0.2)
with open("began", "a") as file:
    print(run.step, file=file)
for batch in run.steps(loader, epochs=3):
    with accelerator.accumulate(model):
        run.backward(lambda part: nn.functional.cross_entropy(model(part[0]), part[1]), batch)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    if "DIES_AT" in os.environ and run.step + 1 == int(os.environ["DIES_AT"]):
        time.sleep(0.25)
    if os.environ.get("DIES_AT") == str(run.step) and not os.path.exists("died"):
        open("died", "w").close()
        os.kill(os.getpid(), 9)
torch.save(model.state_dict(), "weights.pt")
run.finish("weights.pt")
"""

LIGHTNING = """
import os, time, torch
from torch import nn
import lightning
import memsup


def collate(rows):
    inputs = torch.stack([row[0] for row in rows])
    return inputs * (torch.rand_like(inputs) > 0.2), torch.stack([row[1] for row in rows])


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def training_step(self, batch, number):
        at, dies_at = self.trainer.fit_loop.epoch_loop.total_batch_idx, int(os.environ.get("DIES_AT", "-9"))
        if at == dies_at and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), 9)
        if at in {dies_at - 2, dies_at - 1}:
            time.sleep(0.3)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, number):
        self.log("val_loss", torch.rand(1)[0] + nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)]


torch.manual_seed(1)
torch.set_num_threads(1)
data = torch.utils.data.TensorDataset(torch.randn(40, 10), torch.randint(0, 3, (40,)))
loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, collate_fn=collate)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=3, accumulate_grad_batches=3, accelerator="cpu", **quiet)
model = Model()
memsup.guard(trainer, save_every_s=0.2).fit(model, loader, torch.utils.data.DataLoader(data, batch_size=8))
torch.save(model.state_dict(), "weights.pt")
"""


STAY = ("shuffle=True", "shuffle=True, num_workers=2, persistent_workers=True")
"""To be replaced: the loader's processes live on from epoch to epoch."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


ACCELERATE_LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]
"""Two processes on CPUs, where the program asks for these."""


def alone_and_guarded(
    folder: Path,
    program: str,
    *options: str,
    by_one: str | None = None,
    launcher: Sequence[str] = (sys.executable,),
    within_s: float = 120,
    **environment: str,
) -> None:
    """Has a program train in a folder of its own each: `alone`, in this process, and `guarded` by a run of these options, to
    their ends. `by_one` is what trains alone where the program is one of several ranks.
    """
    for name in ("alone", "guarded"):
        (folder / name).mkdir()
        (folder / name / "train.py").write_text(program)
    import torch

    threads = torch.get_num_threads()
    with contextlib.chdir(folder / "alone"):
        exec(compile(by_one or program, "train.py", "exec"), {"__name__": "__main__"})
    torch.set_num_threads(threads)
    command = ["start", "--wait", *options, "--", *launcher, "train.py"]
    started = memsup(*command, cwd=folder / "guarded", within_s=within_s, **environment)
    assert started.returncode == 0, started.stderr + printed()


def most_difference(folder: Path) -> float:
    """By how much the weights differ at most that were learnt alone and guarded."""
    import torch

    alone, guarded = (torch.load(folder / name / "weights.pt") for name in ("alone", "guarded"))
    return max(float((alone[name] - guarded[name]).abs().max()) for name in alone)
