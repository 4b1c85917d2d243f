"""The systemd unit under a systemd of its own: kill -9, a standstill, a reboot and a power cut of a whole machine; and a queue
of five runs that is left alone over kills, a reboot and two nights.

Everything is in `benchmarks/deaths/`, which needs the files of a virtual machine. Whoever has them says where:
MEMSUP_VM_LAB=FOLDER pytest tests/promises/test_service_in_vm.py. Each takes a quarter of an hour: the machine is emulated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from kit import ROOT

LAB = os.environ.get("MEMSUP_VM_LAB")


@pytest.mark.nightly
@pytest.mark.timeout(3000)
@pytest.mark.skipif(LAB is None, reason="NOT RUN: MEMSUP_VM_LAB names no folder with a virtual machine")
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="NOT RUN: there is no qemu-system-x86_64")
@pytest.mark.parametrize(("script", "proofs"), [("service.py", 21), ("night_queue.py", 25)])
def test_in_a_machine_of_its_own_all_of_it_is_proved(script: str, proofs: int) -> None:
    """An ordinary user's unit survives kills, a reboot and a power cut; so does a queue, with the hours of its last run."""
    words = [sys.executable, str(ROOT / "benchmarks" / "deaths" / script), "--lab", str(LAB)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert lines[-1:] == ["VERDICT proved"]
    assert not [line for line in lines if "NOT PROVED" in line]
    assert len([line for line in lines if line.startswith("| proved")]) == proofs
