"""What several ranks cost and gain.

    python benchmarks/ranks.py price [--pairs 3]   steps of the built-in training with two ranks, beside plain
                                                   DistributedDataParallel under torchrun, on the same job, in turns
    python benchmarks/ranks.py slow [--pairs 2]    one of two ranks has a third of a processor (cgroup v1, as root): which part
                                                   of both ranks' speed together is made use of
    python benchmarks/ranks.py same                1, 2 and 3 ranks over 200 steps: samples, and by how much weights differ
    python benchmarks/ranks.py shard               two ranks that share the model, beside two that each have all of it: what
                                                   each has held at its peak, samples/s, and how long a checkpoint takes
    python benchmarks/ranks.py bytes               what goes over the loopback interface in a step (nobody else may use it)
    python benchmarks/ranks.py meet                what a boundary of a person's own program takes with 1, 2, 4 and 8 ranks

`price`, `slow` and `shard` train a BERT of six layers, 384 wide, from nothing in float32, in steps of 16 rows, with fused
AdamW and one thread a rank (`--layers` and `--hidden` choose another size); each rank has its half of a step at once, but for
`shard`, where micro-batches have at most 512 tokens. DistributedDataParallel is given what costs it nothing: batches that are
padded to their longest row and shared out from the longest on. The first steps of a process are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from kit.cli_process import end_supervisors, eventually, memsup
from kit.killed_runs import WAITED_S
from kit.lone_supervisor import LoneSupervisor, newest_checkpoint, state_of, tiny_settings
from kit.one_life import without_dropout
from kit.own_program import BARE_PYTHON, printed
from kit.own_ranks import LAUNCHER

from memsup.shared.messages import Heartbeat
from memsup.shared.readings import RankReading
from memsup.shared.settings import Settings
from memsup.worker.audit import LINE_BYTES

SKIPPED, COUNTED = 15, 40
"""Steps that are not counted, and those that are."""
SHARE_SKIPPED, SHARE_COUNTED = 3, 6
"""The same where the model is large."""
SKIPPED_SLOW = 40
"""The same where shares have to be found first: they are looked at after eight steps, and again after eight more."""

DDP = r"""
import sys, time, torch, torch.distributed as c10d
import numpy as np
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForSequenceClassification
model_folder, lengths_file, skipped, counted, batch = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
c10d.init_process_group("gloo")
rank, count = c10d.get_rank(), c10d.get_world_size()
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model_folder, num_labels=2)).train()
wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
lengths = np.load(lengths_file)
draw = np.random.default_rng(0)
for step in range(skipped + counted):
    if step == skipped:
        began_s, computed_s = time.monotonic(), time.process_time()
    rows = np.sort(draw.choice(lengths, batch, replace=False))[::-1][rank::count]
    longest = int(rows.max())
    ids = torch.randint(5, 200, (len(rows), longest))
    mask = (torch.arange(longest)[None] < torch.tensor(rows.copy())[:, None]).long()
    loss = torch.nn.functional.cross_entropy(wrapped(input_ids=ids, attention_mask=mask).logits, torch.zeros(len(rows)).long())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
took_s, computed_s = time.monotonic() - began_s, torch.tensor(time.process_time() - computed_s)
c10d.all_reduce(computed_s)
if rank == 0:
    print(counted * batch / took_s, 1e3 * computed_s.item() / counted)
c10d.destroy_process_group()
"""

MEETS = """
import sys, time
import memsup
run, steps = memsup.guard(), 3000
for _ in range(200):
    run.boundary()
began_s = time.perf_counter()
for _ in range(steps):
    run.boundary()
print("took", (time.perf_counter() - began_s) / steps * 1e6, flush=True)
"""


def job(folder: Path, ranks: int, *, layers: int | None = None, **values: Any) -> Settings:
    """A job in steps of 16 rows, of a small model where no number of `layers` is chosen."""
    wide = {"hidden": 192, "words": 60, "rows": 1200, "training__effective_batch": 16, "training__micro_tokens": 4096}
    chosen: dict[str, Any] = wide | {"training__max_length": 128, "training__epochs": 3, "training__tune": "false"} | values
    settings = without_dropout(tiny_settings(folder, training__ranks=ranks, **chosen))
    if layers is not None:
        file, hidden = Path(str(settings.task.model)) / "config.json", chosen["hidden"]
        size = {"num_hidden_layers": layers, "num_attention_heads": hidden // 64, "intermediate_size": 4 * hidden}
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | size), encoding="utf-8")
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# Speed


class Speed(NamedTuple):
    samples_per_s: float
    cpu_ms: float
    """Processor time of all ranks for a step."""


def of_memsup(settings: Settings, *, skipped: int = SKIPPED, is_slowed: bool = False) -> Speed:
    """How fast the built-in training is, by the lines of its audit."""
    with LoneSupervisor(settings, name=f"ranks-{time.monotonic_ns()}") as supervisor:
        supervisor.start()
        pids = pids_of(supervisor)
        if is_slowed:
            slow_down(pids[1])
        audit = supervisor.paths.state / "audit.txt"
        began_s, before_s = after_step(supervisor, audit, skipped), cpu_s(pids)
        took_s, computed_s = after_step(supervisor, audit, skipped + COUNTED) - began_s, cpu_s(pids) - before_s
        if is_slowed:
            take_in_all(supervisor)
            print(f"the slowed rank has {ranks_of(supervisor)[1].share:.1%} of a step at the end", flush=True)
        return Speed(COUNTED * (settings.training.effective_batch or 0) / took_s, 1e3 * computed_s / COUNTED)


def cpu_s(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def after_step(supervisor: LoneSupervisor, audit: Path, step: int) -> float:
    """The time at which so many steps are done."""
    looked_s = 0.0
    while not audit.exists() or audit.stat().st_size < step * LINE_BYTES:
        if time.monotonic() - looked_s > 1:
            looked_s = time.monotonic()
            supervisor.until("it trains", lambda: True)  # or has ended, which is an error
            supervisor.pump(0)
        time.sleep(0.002)
    return time.monotonic()


def take_in_all(supervisor: LoneSupervisor) -> None:
    """Takes in all that has come, so that what was told last is what is so."""
    taken = -1
    while taken != len(supervisor.reports):
        taken = len(supervisor.reports)
        supervisor.pump(0)


def pids_of(supervisor: LoneSupervisor) -> list[int]:
    return [rank.pid for rank in ranks_of(supervisor)]


def ranks_of(supervisor: LoneSupervisor) -> tuple[RankReading, ...]:
    """What was told of the ranks last."""

    def told() -> tuple[RankReading, ...] | None:
        for report in reversed(supervisor.reports):
            if isinstance(report, Heartbeat) and report.batch is not None and report.batch.ranks is not None:
                return report.batch.ranks
        return None

    return supervisor.until("ranks are told of", told, WAITED_S)


def slowed_group() -> Path:
    """The cgroup of whoever has a third of a processor, within this process's own."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    own = next(path for _, names, path in (line.split(":", 2) for line in lines) if "cpu" in names.split(","))
    return Path("/sys/fs/cgroup/cpu") / own.lstrip("/") / f"memsup-slow-{os.getpid()}"


def slow_down(pid: int) -> None:
    """Gives a process a third of a processor."""
    group = slowed_group()
    (group / "cpu.cfs_period_us").write_text("20000")
    (group / "cpu.cfs_quota_us").write_text("6667")
    (group / "cgroup.procs").write_text(str(pid))


def of_ddp(settings: Settings, folder: Path) -> Speed:
    import numpy as np

    script, lengths = folder / "ddp.py", folder / "lengths.npy"
    script.write_text(DDP, encoding="utf-8")
    texts = (folder / "reviews.csv").read_text(encoding="utf-8").splitlines()[1:]
    np.save(lengths, np.array([min(128, len(text.rpartition(",")[0]) + 2) for text in texts]))
    numbers = [str(SKIPPED), str(COUNTED), str(settings.training.effective_batch)]
    answer = subprocess.run(
        [*torchrun(2), str(script), str(settings.task.model), str(lengths), *numbers],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Speed(*map(float, answer.stdout.split()))


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def price(folder: Path, pairs: int, **size: int) -> None:
    settings, ratios = job(folder / "job", 2, **size), []
    for pair in range(pairs):
        both: dict[str, Speed] = {}
        for which in ("memsup", "DDP") if pair % 2 else ("DDP", "memsup"):
            both[which] = of_memsup(settings) if which == "memsup" else of_ddp(settings, folder / "job")
        ours, ddp = both["memsup"], both["DDP"]
        ratios.append((ours.samples_per_s / ddp.samples_per_s, ours.cpu_ms / ddp.cpu_ms))
        for name, speed in both.items():
            print(f"{name}: {speed.samples_per_s:.1f} samples/s, {speed.cpu_ms:.0f} ms of processor time a step", flush=True)
    speeds, times = zip(*ratios, strict=True)
    print(
        f"median: {statistics.median(speeds):.3f} times the samples/s, {statistics.median(times):.3f} times the processor time"
    )


def slow(folder: Path, pairs: int, **size: int) -> None:
    settings = job(folder / "job", 2, training__tune="true", **size)
    for _ in range(pairs):
        whole = of_memsup(settings, skipped=SKIPPED_SLOW).samples_per_s
        slowed_group().mkdir()
        try:
            slowed = of_memsup(settings, skipped=SKIPPED_SLOW, is_slowed=True).samples_per_s
        finally:
            eventually(lambda: not (slowed_group() / "cgroup.procs").read_text(), WAITED_S)  # who was slowed has ended
            slowed_group().rmdir()
        part = slowed / (whole * (1 + 1 / 3) / 2)
        print(f"both whole {whole:.1f} samples/s, one with a third {slowed:.1f}: {part:.2f} of both together", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# What comes of it, and what it takes


def same(folder: Path) -> None:
    """About 200 steps in float32 without dropout."""
    import numpy as np
    from safetensors.numpy import load_file

    first: tuple[str, dict[str, Any]] | None = None
    for ranks in (1, 2, 3):
        settings = job(folder / f"job{ranks}", ranks, hidden=128, rows=900, training__epochs=4, training__learning_rate=1e-4)
        with LoneSupervisor(settings, name=f"same-{ranks}") as supervisor:
            supervisor.run_to_end()
            state, weights = state_of(supervisor.paths), load_file(newest_checkpoint(supervisor.paths) / "model.safetensors")
        samples = str(state["digest"]).partition(".")[0]
        first = first or (samples, weights)
        most = max(float(np.abs(weights[name] - first[1][name]).max()) for name in weights)
        print(f"{ranks} ranks, {state['step']} steps: samples {samples}, weights differ by at most {most:.1e}", flush=True)


def shard(folder: Path, **size: int) -> None:
    from kit.memory_of import peak_bytes

    from memsup.shared.messages import Checkpoint, Done

    for is_shared in (False, True):
        settings = job(folder / "job", 2, training__shard=is_shared, training__micro_tokens=512, **size)
        with LoneSupervisor(settings, name=f"shard-{is_shared}") as supervisor:
            supervisor.start()
            pids, audit = pids_of(supervisor), supervisor.paths.state / "audit.txt"
            began_s = after_step(supervisor, audit, SHARE_SKIPPED)
            took_s = after_step(supervisor, audit, SHARE_SKIPPED + SHARE_COUNTED) - began_s
            peaks = [peak_bytes(pid) for pid in pids]
            done = supervisor.order(Checkpoint(order_id=1, reason="a benchmark"))
            assert isinstance(done, Done)
            assert done.checkpoint is not None
            speed = SHARE_COUNTED * (settings.training.effective_batch or 0) / took_s
            print(
                f"{'the model shared' if is_shared else 'all of it on each'}: at the peak "
                + " and ".join(f"{bytes_ / 2**20:.0f}" for bytes_ in peaks)
                + f" MiB, {speed:.1f} samples/s, a checkpoint of {(done.checkpoint.size_bytes or 0) / 2**20:.0f} MiB in "
                + f"{done.checkpoint.save_s or 0:.2f} s, after which {max(map(peak_bytes, pids)) / 2**20:.0f} MiB",
                flush=True,
            )


def over_loopback(folder: Path) -> None:
    for ranks in (2, 3):
        settings = job(folder / f"job{ranks}", ranks, hidden=128)
        with LoneSupervisor(settings, name=f"bytes-{ranks}") as supervisor:
            supervisor.start()
            audit = supervisor.paths.state / "audit.txt"
            after_step(supervisor, audit, SKIPPED)
            before, at = looped_bytes(), audit.stat().st_size // LINE_BYTES
            after_step(supervisor, audit, SKIPPED + COUNTED)
            steps = audit.stat().st_size // LINE_BYTES - at
            took = (looped_bytes() - before) / steps
        import safetensors

        supervisor_paths = newest_checkpoint(supervisor.paths)
        with safetensors.safe_open(supervisor_paths / "model.safetensors", "np") as file:
            learned = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
        ring = 2 * (ranks - 1) * 4 * learned
        print(f"{ranks} ranks, {learned:,} weights: {took:,.0f} bytes a step, {took / ring:.3f} of 2 (N - 1) × 4 a weight")


def looped_bytes() -> int:
    return int(Path("/sys/class/net/lo/statistics/rx_bytes").read_text())


def meet(folder: Path) -> None:
    (folder / "meets.py").write_text(MEETS)
    (folder / "launch.py").write_text(LAUNCHER)
    for ranks in (1, 2, 4, 8):
        command = [sys.executable, "-S", "launch.py", str(ranks), *BARE_PYTHON, "meets.py"]
        memsup("start", "--fresh", "--wait", "--", *command, cwd=folder, within_s=120)
        took = [float(word) for word in re.findall(r"took ([0-9.]+)", printed())]
        print(f"{ranks} ranks: {max(took[-ranks:]):.0f} µs a boundary", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("price", "slow", "same", "shard", "bytes", "meet"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memsup-ranks-") as name:
        folder = Path(name)
        for kind in ("state", "runtime"):
            (folder / kind).mkdir(mode=0o700)
            os.environ[f"MEMSUP_{kind.upper()}_DIR"] = str(folder / kind)
        try:
            if options.what == "shard":
                shard(folder, layers=options.layers, hidden=options.hidden)
            elif options.what in {"price", "slow"}:
                {"price": price, "slow": slow}[options.what](
                    folder, options.pairs, layers=options.layers, hidden=options.hidden
                )
            else:
                {"same": same, "bytes": over_loopback, "meet": meet}[options.what](folder)
        finally:
            end_supervisors()


if __name__ == "__main__":
    main()
