"""Runs the parts of the proof one after the other and keeps what they find; `prove.sh` beside this file is how to start it.

    bash benchmarks/gpu/prove.sh [--rehearse [--quick]] [--only LETTERS] [--within SECONDS] [--power-cap]

Each part is a process of its own with a deadline of its own, and what it leaves behind is ended with it. After every line
`proof.json` and `proof.txt` in the folder `$OUT` are written anew, so that a run that is cut off has told what it knew; where a
line does not hold, `proof.log` has the ends of the logs. Exit code 0: every line held or could not be run here; 1: some did
not.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from lines import Finding, Verdict, line, page, unreached
from stage import HERE, ROOT, Stage

PARTS = {
    "a": "probe",
    "b": "main_job",
    "j": "language_model",
    "c": "memory_runs_out",
    "d": "others",
    "g": "any_program",
    "h": "attached",
    "e": "optimizer_on_host",
    "f": "power_cap",
    "k": "two_cards",
    "i": "small_cards",
}
"""In this order, so that a proof that is cut off has told the most."""
WITHIN_S = 840.0
LOOK_S = 0.2
PR_SET_CHILD_SUBREAPER = 36
MOST_LOG_BYTES = 200_000
TAIL_BYTES = 12_000


@dataclass
class Proof:
    """What is known so far, on disk after every change."""

    out: Path
    document: dict[str, Any]
    began_s: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        self.document["took_s"] = round(time.monotonic() - self.began_s, 1)
        for name, text in (("proof.json", json.dumps(self.document, indent=1)), ("proof.txt", page(self.document))):
            beside = self.out / f"{name}.new"
            beside.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")
            beside.replace(self.out / name)

    def add(self, lines: list[dict[str, Any]]) -> None:
        self.document["lines"] += lines
        self.write()

    @property
    def is_good(self) -> bool:
        return all(one["verdict"] in (Verdict.HELD, Verdict.NOT_RUN) for one in self.document["lines"])


# --------------------------------------------------------------------------------------------------------------------
# The parts


def run_part(name: str, proof: Proof, options: argparse.Namespace, work: Path, environment: Mapping[str, str]) -> None:
    """One part in a process of its own, with its lines as they come. What it leaves behind is ended."""
    part = _module(name)
    left_s = options.within - (time.monotonic() - proof.began_s)
    folder = work / name
    deadline_s = part.DEADLINE_S * _stage(folder, options).patience if options.rehearse else min(part.DEADLINE_S, left_s)
    entry = {"part": name, "title": part.TITLE, "deadline_s": deadline_s, "took_s": 0.0, "ended": "running"}
    proof.document["parts"].append(entry)
    if deadline_s < 10.0:
        entry["ended"] = "not begun"
        proof.add(unreached(name, part.PROMISES, (), "the time was over", broke=False))
        return
    folder.mkdir()
    home = {
        "MEMSUP_STATE_DIR": f"{folder}/state",
        "MEMSUP_RUNTIME_DIR": f"{folder}/run",
        "XDG_CONFIG_HOME": f"{folder}/config",
    }
    found, log = folder / "lines.jsonl", folder / "part.log"
    found.touch()
    began_s = time.monotonic()
    with log.open("wb") as said:
        child = subprocess.Popen(
            [sys.executable, __file__, "--part", name, str(folder), *_flags(options)],
            env={**environment, **home},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        told: list[str] = []
        while child.poll() is None and time.monotonic() - began_s < deadline_s:
            _take(found, told, name, part, proof)
            time.sleep(LOOK_S)
        in_time = child.poll() is not None
        _end_descendants()
        child.wait()
    _take(found, told, name, part, proof)
    entry["took_s"] = round(time.monotonic() - began_s, 1)
    entry["ended"] = "whole" if child.returncode == 0 else f"crashed with {child.returncode}" if in_time else "at its deadline"
    why = f"{_last_line(log)}" if in_time else f"the part was not done after {deadline_s:.0f} s"
    proof.add(
        unreached(name, part.PROMISES, told, f"failed: {why}" if in_time else why, broke=in_time and child.returncode != 0)
    )
    mine = [one for one in proof.document["lines"] if one["part"] == name]
    if not all(one["verdict"] in (Verdict.HELD, Verdict.NOT_RUN) for one in mine) or not in_time:
        _keep_logs(proof.out / "proof.log", name, folder)
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)


def play(name: str, folder: Path, options: argparse.Namespace) -> int:
    """In the part's own process: each finding goes to the file at once."""
    stage = _stage(folder, options)
    with (folder / "lines.jsonl").open("a", encoding="utf-8") as file:
        for finding in _module(name).prove(stage):
            file.write(json.dumps(dataclasses.asdict(finding)) + "\n")
            file.flush()
    return 0


def _stage(folder: Path, options: argparse.Namespace) -> Stage:
    return Stage(work=folder, rehearses=options.rehearse, quick=options.quick, may_cap=options.power_cap)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"parts.{name}")


def _flags(options: argparse.Namespace) -> list[str]:
    return [
        flag
        for flag, on in (("--rehearse", options.rehearse), ("--quick", options.quick), ("--power-cap", options.power_cap))
        if on
    ]


def _take(found: Path, told: list[str], name: str, part: ModuleType, proof: Proof) -> None:
    """The whole lines that have come since the last look."""
    findings = [Finding(**json.loads(text)) for text in found.read_text(encoding="utf-8").split("\n")[:-1]]
    new = findings[len(told) :]
    if new:
        told += [finding.key for finding in new]
        proof.add([line(name, part.PROMISES[finding.key], finding) for finding in new])
        for finding in new:
            print(f"{finding.verdict:9} {name}.{finding.key}: {finding.measured}", flush=True)


def _end_descendants() -> None:
    """Supervisors have sessions of their own; as their subreaper this process still finds them, whoever started them."""
    deadline_s = time.monotonic() + 20
    while children := [one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]:
        for one in children:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(children, timeout=2)
        if time.monotonic() > deadline_s:
            break
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:600] if lines else "it said nothing"


def _keep_logs(into: Path, name: str, folder: Path) -> None:
    """The ends of what the part and its runs wrote, while there is room."""
    logs = [folder / "part.log", *sorted(folder.glob("state/*/*.log")), *sorted(folder.glob("state/*/ledger.jsonl"))]
    with into.open("ab") as kept:
        for log in logs:
            if kept.tell() < MOST_LOG_BYTES:
                kept.write(f"\n===== {name}: {log.relative_to(folder)}\n".encode() + log.read_bytes()[-TAIL_BYTES:])


# --------------------------------------------------------------------------------------------------------------------
# The machine


def rehearsed_environment(work: Path) -> dict[str, str]:
    """With the tests' library in place of NVIDIA's, and no CUDA even where there is some."""
    from kit.fake_nvml import FakeNvml, build

    (work / "nvml").mkdir()
    fake = FakeNvml(build(work / "nvml"), work / "nvml" / "control")
    path = f"{HERE / 'stand_in'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **fake.environment, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}


def machine_facts(environment: Mapping[str, str]) -> dict[str, Any]:
    """What the findings depend on. A fact is None where it is not known."""

    def said(*command: str) -> str | None:
        try:
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None if done.returncode == 0 else None

    asked = "import importlib.metadata as m; print(m.version({!r}))"
    return {
        "card": said("nvidia-smi", "-i", "0", "--query-gpu=name", "--format=csv,noheader"),
        "driver": said("nvidia-smi", "-i", "0", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpus": len(os.sched_getaffinity(0)),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: said(sys.executable, "-c", asked.format(name)) for name in ("torch", "transformers", "accelerate")},
        "memsup": said("git", "rev-parse", "--short", "HEAD"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, against a library that only speaks NVML")
    parser.add_argument("--quick", action="store_true", help="a rehearsal as small as it gets")
    parser.add_argument("--only", default="".join(PARTS), metavar="LETTERS", help="these parts")
    parser.add_argument("--within", type=float, default=WITHIN_S, metavar="SECONDS", help="of the whole proof on a card")
    parser.add_argument("--power-cap", action="store_true", help="may change the card's power limit, and gives it back")
    parser.add_argument("--keep", action="store_true", help="the folders of the runs")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return play(options.part[0], Path(options.part[1]), options)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):  # what was started is ended all the same
        signal.signal(number, lambda *_: sys.exit(1))
    out = Path(os.environ["OUT"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "proof.log").unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix="memsup-proof-"))
    try:
        environment = rehearsed_environment(work) if options.rehearse else dict(os.environ)
        if not options.rehearse:
            environment["POWER_LIMIT_BEFORE_W"] = _power_limit_w() or ""
        document: dict[str, Any] = {
            "schema": 1,
            "rehearsal": options.rehearse,
            "began": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "took_s": 0.0,
            "machine": {},
            "parts": [],
            "lines": [],
        }
        proof = Proof(out, document)
        document["machine"] = machine_facts(environment)
        proof.write()
        for letter, name in PARTS.items():
            if letter in options.only:
                run_part(name, proof, options, work, environment)
    finally:
        _end_descendants()
        if options.keep:
            print(f"The runs lie in {work}.")
        else:
            shutil.rmtree(work, ignore_errors=True)
    print(page(proof.document))
    return 0 if proof.is_good else 1


def _power_limit_w() -> str | None:
    asked = ["nvidia-smi", "-i", "0", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return None
    try:
        return str(float(done.stdout))
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main())
