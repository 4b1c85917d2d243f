"""A queue of five runs in a virtual machine: three kills, a reboot, a failure, and hours on a clock that is set, one line each.

    python benchmarks/deaths/night_queue.py --lab FOLDER

As `service.py`, whose machine it uses: memsup's wheel is installed there, and used through its command line alone. The second
run fails; the fourth was to come only if it finished; the last one is a loop of one's own with `memsup.guard` that comes after
all, from 23:00 to 7:00. Each line says `proved` or `NOT PROVED`; exit code 1 if one is not. Expect a quarter of an hour.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

from service import make_wheels, stage_in_vm


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", type=Path, required=True)
    parser.add_argument("--patience", type=int, default=1, help="how many times as long all may take, on a busy machine")
    options = parser.parse_args()
    said = stage_in_vm(options.lab, "night_queue.sh", make_site, patience=options.patience)
    print(*said, sep="\n", flush=True)
    return 0 if said[-1:] == ["VERDICT proved"] else 1


def make_site(scratch: Path) -> Path:
    """A folder with memsup as its wheel has it, and with what it needs, unpacked: pip alone would take an emulated machine
    minutes.
    """
    site = scratch / "site"
    for wheel in make_wheels(scratch).glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(site)
    return site


if __name__ == "__main__":
    sys.exit(main())
