"""Stages real deaths in a virtual machine and prints what memsup says at the next start, one paragraph a death.

    python benchmarks/deaths/stage.py --lab FOLDER --wheel msgspec-….whl [DEATH…]

FOLDER has a Debian VM's `vmlinux`, `initrd` and `root.img` whose `lab-job.service` runs `script` out of a tar on /dev/vdb after
a line on its second serial port. The wheel is msgspec for the VM's Python. In the VM a process notes real readings into a real
black box, dies together with its machine or alone, and after the next boot (of the same disk) `evidence` and
`postmortem` (`memsup.supervisor.record`) are asked. The VM is emulated: expect two minutes a boot.

    power     the emulator is killed: what the guest had not flushed is gone
    panic     sysrq c; the dump is kept by ramoops in a corner of RAM that survives the reset
    lost      the same without ramoops: nothing tells a panic from a power cut then, and that is what has to be said
    reboot    systemctl reboot
    killed    kill -9, the machine lives on
    oom       the kernel kills the process because memory has run out
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COMMAND_LINE = (
    "console=ttyS0 root=/dev/vda rw panic=1 nokaslr mitigations=off psi=1 tsc=reliable no_timer_check clearcpuid=rep_good,erms "
    "random.trust_cpu=on systemd.show_status=0 memmap=1M$0x30000000"
)
SAYS = {
    "power": ("power loss", False),
    "panic": ("kernel panic", True),
    "lost": ("power loss", False),
    "reboot": ("killed", True),
    "killed": ("killed", False),
    "oom": ("kernel out of memory", True),
}
"""Cause and certainty that have to come out."""
WITHIN_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("deaths", nargs="*", choices=[*SAYS, []], metavar="DEATH")
    options = parser.parse_args()
    failed = 0
    for death in options.deaths or list(SAYS):
        with tempfile.TemporaryDirectory() as scratch:
            said = stage(death, options.lab, options.wheel, Path(scratch))
        verdict = [line.removeprefix("VERDICT ") for line in said if line.startswith("VERDICT ")]
        cause, sure = SAYS[death]
        right = verdict == [f"{cause} {'sure' if sure else 'likely'}"]
        failed += not right
        print(f"== {death}: {'as it was' if right else f'WRONG, {verdict}'}", *said, sep="\n   ", flush=True)
    return 1 if failed else 0


def stage(death: str, lab: Path, wheel: Path, scratch: Path) -> list[str]:
    """The guest's last words, lines that begin with `|` or VERDICT."""
    disk, job = scratch / "disk.qcow2", scratch / "job"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", lab / "root.img", "-F", "raw", disk], check=True)
    make_job(job, death, wheel)
    said: list[str] = []
    deadline_s = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline_s:
        said += boot(emulator(lab, disk, job, scratch), scratch / "console", death == "power", deadline_s)
        if any(line.startswith("VERDICT") for line in said):
            break
    return said


def emulator(lab: Path, disk: Path, job: Path, scratch: Path, ram_mib: int = 1024) -> list[str | Path]:
    for name, mib in (("job", 64), ("out", 256), ("swap", 64)):
        with (scratch / name).open("ab") as file:
            file.truncate(mib << 20)
    command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm", "-M", "pc,usb=off,vmport=off"]
    command += ["-m", str(ram_mib), "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"]
    command += ["-kernel", str(lab / "vmlinux"), "-initrd", str(lab / "initrd"), "-append", COMMAND_LINE]
    command += ["-serial", f"file:{scratch / 'console'}", "-chardev", "stdio,id=job,signal=off", "-serial", "chardev:job"]
    drives = ((disk, "qcow2"), (job, "raw"), (scratch / "out", "raw"), (scratch / "swap", "raw"))
    for number, (path, form) in enumerate(drives):
        command += ["-drive", f"file={path},if=none,id=d{number},format={form},cache=unsafe"]
        command += ["-device", f"virtio-blk-pci,drive=d{number}"]
    return [*command]


def boot(command: list[str | Path], console: Path, cut_power: bool, deadline_s: float) -> list[str]:
    """One life of the emulator: until the verdict, until it goes, or until its power is cut in the middle of things."""
    console.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    answered, said, rest = 0, [], b""
    os.set_blocking(process.stdout.fileno(), False)
    try:
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.1)
            ready = console.read_bytes().count(b"LAB-READY") if console.exists() else 0
            if ready > answered:
                answered = ready
                process.stdin.write(b"\n")
                process.stdin.flush()
            rest += process.stdout.read() or b""
            *lines, rest = rest.split(b"\n")
            words = [line.decode(errors="replace").strip() for line in lines]
            said += [word for word in words if word]
            if cut_power and any(word.startswith("! noted") for word in words):
                break
            if any(word.startswith("VERDICT") for word in words):
                break
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    return [word for word in said if not word.startswith("!")]


def make_job(path: Path, death: str, wheel: Path) -> None:
    """A tar with the script, msgspec, and memsup's folders under the name that they are imported by."""
    texts = {
        "env": "export LAB_SWAP_MIB=0\nexport LAB_JOURNAL=0\nexport LAB_NOW=$(date +%s)\n",
        "args": f"{death}\0",
        "memsup/__init__.py": "",
    }
    with tarfile.open(path, "w") as tar:
        tar.add(HERE / "guest.sh", "script", filter=lambda info: info.replace(mode=0o755, deep=False))
        tar.add(HERE / "guest.py", "guest.py")
        tar.add(wheel, "msgspec.whl")
        for package in ("supervisor", "shared", "checkpoint"):
            for file in sorted((ROOT / package).rglob("*.py")):
                tar.add(file, f"memsup/{package}/{file.relative_to(ROOT / package)}")
        for name, text in texts.items():
            file = path.parent / "text"
            file.write_text(text, encoding="utf-8")
            tar.add(file, name)


if __name__ == "__main__":
    sys.exit(main())
