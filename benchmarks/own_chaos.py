"""ckpt-chaos on a training with Hugging Face's Trainer, by itself and under memsup (docs/own-programs.md).

    python benchmarks/own_chaos.py --python PYTHON [--alone] [--forked] [--part 1/1] [--within-s N] [--jobs 2]

`ckpt-chaos` (PyPI) runs a program once and notes each file that it makes, renames or removes; then it kills a fresh run at each
of these events, once before it and once with the file cut in half, runs the command again, and compares the weights. PYTHON is
an interpreter that has `ckpt-chaos[bench]`, and needs nothing of memsup. `--alone` is its own benchmark of Trainer, in which
the second save of two is disturbed. So it is under memsup; `--part 2/5` takes the second of five instants each. What is done
`--within-s` is judged.

Under memsup the program is ckpt-chaos's own, a tiny GPT-2 that saves every five steps, without what makes Trainer go on. Its
folder of checkpoints lies where ckpt-chaos looks, so that it is killed within memsup's saves as well as within those of the
user. A program that is killed is started again by memsup, in the same command, which therefore tells by its exit code that it
was killed; what ckpt-chaos runs then goes on, or finds a run that is finished. Only the program is killed here.

That is two imports of transformers for each instant. `--forked` has no supervisor: each life is forked from a process that has
imported all, with the same half of memsup in it, which is what saves and goes on. So all instants take a few minutes. With
`--alone` that is the same program without memsup, which goes on by `resume_from_checkpoint=True` where there is a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.cli_process import MEMSUP  # noqa: E402
from kit.nursery import Nursery  # noqa: E402
from kit.trainer_program import told  # noqa: E402

PROGRAM = """
import os, sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.set_num_threads(1)
out = sys.argv[1]

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, at):
        ids = torch.randint(0, 100, (16,), generator=torch.Generator().manual_seed(at))
        return {"input_ids": ids, "labels": ids.clone()}

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=2))
arguments = TrainingArguments(output_dir=out + "/trained", max_steps=10, save_steps=5, per_device_train_batch_size=4,
                              use_cpu=True, report_to=[], logging_steps=1000, seed=0, data_seed=0, disable_tqdm=True)
Trainer(model=model, args=arguments, train_dataset=Rows()).train()
torch.save(model.state_dict(), out + "/final.pt")
"""
"""The program of ckpt-chaos (`targets/hf_trainer.py`) with ten steps in place of thirty, as a person would write it."""
COMMAND = """
export CKPT_CHAOS_ARMED=1 MEMSUP_STATE_DIR="$0-state" MEMSUP_RUNTIME_DIR="$0-run"
"$@" || exit
[ -z "$CKPT_CHAOS_CRASH_AT" ] || [ ! -d "$0-second" ] || exit 137
"""
"""What ckpt-chaos runs. It arms the first interpreter that it comes to, unless that is told to be armed, as memsup's here."""
LIFE = """
if mkdir "$0-first" 2>&-; then unset CKPT_CHAOS_ARMED; else mkdir -p "$0-second"; fi
exec {python} {train} "$0"
"""
"""What memsup runs: only the first life is killed."""
SOME_POINTS = """
import sys
from ckpt_chaos import byo, cli
first, of = (int(sys.argv.pop(1)) for _ in range(2))
points = byo._select

def of_one_save(events, *given):
    begins = next(at for at, event in enumerate(events) if event[2].startswith((".draft-00000010", "checkpoint-10")))
    ends = next((at for at, event in enumerate(events) if at > begins and event[1] == "shutil.rmtree"), len(events) - 2)
    return points(events[begins : ends + 1], *given)[first::of]

byo._select = of_one_save
sys.exit(cli.main())
"""
ARMED = """
import os, sys
sys.path.append({chaos!r})
from ckpt_chaos.targets.common import arm_from_env
arm_from_env(0)
del sys.argv[1:]
sys.argv.append(os.environ["OUT"])
os.makedirs(sys.argv[1], exist_ok=True)
"""
CLIENT = """
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
link.sendall(json.dumps([sys.argv[2], dict(os.environ)]).encode())
link.shutdown(socket.SHUT_WR)
sys.exit(int(link.makefile().read()) % 256)
"""
"""What ckpt-chaos runs for a life that is forked: it asks for one, and ends as that does."""
RESUMED = """.train(
    resume_from_checkpoint=any("checkpoint-" in name for name in os.listdir(out + "/trained")) or None
)"""
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--forked", action="store_true")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--within-s", type=float)
    parser.add_argument("--jobs", default="2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as folder:
        if options.alone and not options.forked:
            command = [options.python, "-m", "ckpt_chaos", "bench", "hf_trainer"]
            return judged([*command, "--jobs", options.jobs, "--work", f"{folder}/w"], folder, options)
        train = Path(folder, "train.py")
        train.write_text(PROGRAM)
        first, of = options.part.split("/")
        chaos = [options.python, "-c", SOME_POINTS, str(int(first) - 1), of, "run", "--work", f"{folder}/w"]
        chaos += ["--jobs", options.jobs, "--max-points", "1000", "--result-file", "{out}/final.pt", "--"]
        if options.forked:
            where = [options.python, "-c", "import ckpt_chaos; print(ckpt_chaos.__path__[0])"]
            chaos_at = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
            program = PROGRAM.replace(".train()", RESUMED) if options.alone else PROGRAM
            train.write_text(ARMED.format(chaos=os.path.dirname(chaos_at)) + program)
            with Nursery("trainer") as nursery, socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{folder}/lives")
                listener.listen()
                threading.Thread(target=serve, args=(listener, nursery, train, not options.alone), daemon=True).start()
                client = [sys.executable, "-S", "-c", CLIENT, f"{folder}/lives", "{out}"]
                return judged([*chaos, "env", "CKPT_CHAOS_ARMED=1", *client], folder, options)
        program = LIFE.format(python=options.python, train=train)
        guarded = [*MEMSUP, "start", "--wait", "--set", "checkpoint.folder={out}/kept", "--", "sh", "-c", program, "{out}"]
        return judged([*chaos, "sh", "-c", COMMAND, "{out}", *guarded], folder, options)


def serve(listener: socket.socket, nursery: Nursery, train: Path, guarded: bool) -> None:
    """Forks a life for each who asks, and tells how it has ended."""
    while True:
        asked, _ = listener.accept()
        threading.Thread(target=live, args=(asked, nursery, train, guarded), daemon=True).start()


def live(asked: socket.socket, nursery: Nursery, train: Path, guarded: bool) -> None:
    with asked, open(f"{train}.printed", "ab") as printed:
        out, environment = json.loads(asked.makefile("rb").read())
        environment |= (told(Path(out, "kept")) if guarded else {}) | {"OUT": out}
        fd = printed.fileno()
        life = nursery.fork([str(train)], environment, output_fd=fd, second_fd=fd, cwd=train.parent)
        status = life.wait(300)
        asked.sendall(str(status).encode())


def judged(chaos: list[str], folder: str, options: argparse.Namespace) -> int:
    """Runs it, and has it judge what it has done where the time is up."""
    try:
        return subprocess.run(chaos, env=os.environ | QUIET, check=False, timeout=options.within_s).returncode
    except subprocess.TimeoutExpired:
        print(f"{options.within_s:.0f} s are over; what was done by then:")
        judge = [options.python, "-m", "ckpt_chaos", "judge", f"{folder}/w"]
        return subprocess.run(judge, env=os.environ | QUIET, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
