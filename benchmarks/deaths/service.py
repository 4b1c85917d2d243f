"""The systemd unit of an ordinary user, in a virtual machine: kill -9, a standstill, a reboot and a power cut, one line each.

    python benchmarks/deaths/service.py --lab FOLDER

FOLDER is that of `stage.py`; its machine has a user `lab` with a `systemd --user`, and psutil and pyzmq as packages. memsup is
installed there from its wheel by pip, and used through its command line alone: runs are started, the unit is installed with
`memsup service install`, and what has to come back does so by itself. Each line says `proved` or `NOT PROVED`; exit code 1 if
one is not. The VM is emulated: expect a quarter of an hour.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stage import HERE, ROOT, boot, emulator

NEEDED = ["click", "msgspec", "nvidia-ml-py", "platformdirs", "structlog", "xxhash"]
NEEDED += ["rich", "markdown-it-py", "mdurl", "pygments"]
"""Besides what the machine has; the command line and the supervisor alone."""
WITHIN_S = 2400.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", type=Path, required=True)
    said = stage_in_vm(parser.parse_args().lab, "service.sh", make_wheels)
    print(*said, sep="\n", flush=True)
    return 0 if said[-1:] == ["VERDICT proved"] else 1


def stage_in_vm(lab: Path, script: str, make: Callable[[Path], Path], *, patience: int = 1) -> list[str]:
    """What the guest said in `script`, line by line; the last one is its verdict, if it came to one. `make` makes the folder
    that the guest finds beside the script. On a machine that has other work all takes `patience` times as long.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        disk, job = scratch / "disk.qcow2", scratch / "job"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", lab / "root.img", "-F", "raw", disk], check=True)
        make_job(job, make(scratch), script, patience)
        said: list[str] = []
        deadline_s = time.monotonic() + patience * WITHIN_S
        while time.monotonic() < deadline_s and not any(line.startswith("VERDICT") for line in said):
            cut_power = not said
            said += boot(emulator(lab, disk, job, scratch, ram_mib=2048), scratch / "console", cut_power, deadline_s)
        return said


def make_wheels(scratch: Path) -> Path:
    folder = scratch / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--python-version", "3.13", "--only-binary=:all:", "--dest", str(folder), *NEEDED]
    subprocess.run([*pip, "download", *wanted], check=True)
    for left_over in ("lib", "bdist.linux-x86_64"):
        shutil.rmtree(ROOT / "build" / left_over, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, stdout=subprocess.DEVNULL
    )
    return folder


def make_job(path: Path, beside: Path, script: str, patience: int) -> None:
    with tarfile.open(path, "w") as tar:
        tar.add(HERE / script, "script", filter=lambda info: info.replace(mode=0o755, deep=False))
        tar.add(HERE / "as_lab.sh", "as_lab.sh")
        tar.add(beside, beside.name)
        environment = f"export LAB_SWAP_MIB=0 LAB_JOURNAL=0 LAB_NOW=$(date +%s) PATIENCE={patience}\n"
        for name, text in {"env": environment, "args": ""}.items():
            file = path.parent / "text"
            file.write_text(text, encoding="utf-8")
            tar.add(file, name)


if __name__ == "__main__":
    sys.exit(main())
