"""The systemd unit under a systemd of its own: kill -9, a standstill, a reboot and a power cut of a whole machine.

Everything is in `benchmarks/deaths/service.py`, which needs the files of a virtual machine. Whoever has them says where:
MEMSUP_VM_LAB=FOLDER pytest tests/promises/test_service_in_vm.py. It takes a quarter of an hour, since the machine is emulated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from kit import ROOT

SERVICE = ROOT / "benchmarks" / "deaths" / "service.py"
LAB = os.environ.get("MEMSUP_VM_LAB")


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.skipif(LAB is None, reason="NOT RUN: MEMSUP_VM_LAB names no folder with a virtual machine")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="NOT RUN: there is no qemu-system-x86_64")
def test_an_ordinary_users_unit_survives_kills_a_reboot_and_a_power_cut() -> None:
    done = subprocess.run([sys.executable, str(SERVICE), "--lab", str(LAB)], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1:] == ["VERDICT proved"]
    assert not [line for line in lines if "NOT PROVED" in line]
    assert len([line for line in lines if line.startswith("| proved")]) == 21
