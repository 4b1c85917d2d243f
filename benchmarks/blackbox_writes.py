"""What the black box costs a disk: sectors that really reach a block device, ext4's journal included.

    sudo .venv/bin/python benchmarks/blackbox_writes.py [SECONDS]

Makes a small ext4 on a loop device of its own, flushes once a second as the supervisor does, and reads the device's own
counter (/sys/block/loopN/stat, field 7: sectors written; Documentation/block/stat.rst). Once through O_DIRECT, once through the
page cache. Needs root for the mount, and removes all of it. Prints one line each, per day, beside a thousandth of the write
budget of a drive that is rated for 600 TB in five years.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.record import blackbox

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
BUDGET_BYTES = 600e12 / (5 * 365)


def written_bytes(device: str) -> int:
    return int(Path(f"/sys/block/{device}/stat").read_text(encoding="ascii").split()[6]) * 512


def measure(folder: Path, device: str, *, direct: bool) -> float:
    """Bytes a day that the device was given."""
    box = blackbox.BlackBox(folder / f"box-{direct}", "3f5c1d1e-0000-4000-8000-000000000000")
    if not direct:
        os.close(box._fd)
        box._fd, box._direct = os.open(folder / f"box-{direct}", os.O_RDWR), False
    assert box.writes_sectors is direct
    box.facts = blackbox.Facts(state="running", phase="training", step=12_345, ticks=99_999, limit_mib=12_000)
    subprocess.run(["sync", "-f", folder], check=True)
    before, begun_s = written_bytes(device), time.monotonic()
    for second in range(SECONDS):
        for tenth in range(10):
            box.note(MemoryReading(at_s=second + tenth / 10, ram_total_bytes=1 << 34, ram_available_bytes=1 << 33))
        box.flush(second + 1.0, time.time())
        time.sleep(max(0.0, begun_s + second + 1 - time.monotonic()))
    time.sleep(6)  # the last commit of the journal
    lasted_s = time.monotonic() - begun_s
    box.close_cleanly(SECONDS, time.time(), "measured")
    return (written_bytes(device) - before) / lasted_s * 86_400


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        image, folder = Path(scratch) / "disk.img", Path(scratch) / "mnt"
        folder.mkdir()
        with open(image, "wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            source = subprocess.run(["findmnt", "-no", "SOURCE", folder], check=True, capture_output=True, text=True).stdout
            device = Path(source.strip()).name
            for direct in (True, False):
                per_day = measure(folder, device, direct=direct)
                how = "past the page cache" if direct else "through the page cache"
                print(f"{how}: {per_day / 1e6:.0f} MB a day, {per_day / BUDGET_BYTES:.3%} of 329 GB a day", flush=True)
        finally:
            subprocess.run(["umount", folder], check=True)


main()
