"""Inside a throw-away virtual machine, as root: a runaway allocator against one kind of protection, and what the machine felt.

    case.py run PROTECTION USER RATE

PROTECTION is none, earlyoom, oomd, memsup, or one of three that protect nothing. *idle*: there is no allocator, a program
sleeps for six seconds in its place; it shows what the canaries find on a machine with all the memory it wants. *beside*: the
allocator is nobody's, as with none, and memsup guards a command that sleeps; it shows how long the supervisor itself stands
still while the machine thrashes. *stopped*: the same, with the supervisor stopped before the allocator begins, to show what it
does to the machine. USER is lab or root, RATE full or MiB/s.

Beside it runs a bystander with 80 MiB of its own in the user's session, and two canaries: one wakes every 10 ms, one starts
/bin/true every 200 ms; each notes the longest time by which it was late. Leaves result.json in $OUT. `run` (beside this file)
starts the machines, `table.py` makes the table.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

STEP = 4 << 20
WANTS = 4096 << 20
ENDS_WITHIN_S = 30.0
NOT_ITS_OWN = ("beside", "stopped")
"""The allocator is not what memsup guards."""
LIMITS = ("--set", "limits.ram=600MiB", "--set", "limits.ram_reserve=300MiB")
"""Of 968 MiB; the reserve is lower than the default, which would leave a worker too little to begin with here."""
NOTES = Path("/dev/shm/hog")
HERE = str(Path(__file__).resolve())


def hog(rate: str) -> None:
    """Touches more and more memory; notes when it began, when it last got on, and how much it has."""
    held, total, ones = [], 0, b"\1" * (STEP // 4096)
    began_s = time.monotonic()
    with NOTES.open("w", encoding="ascii") as notes:
        while total < WANTS:
            block = mmap.mmap(-1, STEP, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memoryview(block)[::4096] = ones
            held.append(block)
            total += STEP
            notes.seek(0)
            notes.write(f"{began_s} {time.monotonic()} {total:12d}\n")
            notes.flush()
            if rate != "full":
                time.sleep(max(0.0, began_s + total / (float(rate) * 2**20) - time.monotonic()))
    time.sleep(1000)


def canary(kind: str, out: str) -> None:
    """SIGUSR1: the quiet part is over, count anew. SIGTERM: write and end."""
    worst_s, quiet_s, ended = 0.0, 0.0, False

    def begin(*_: object) -> None:
        nonlocal worst_s, quiet_s
        worst_s, quiet_s = 0.0, worst_s

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGTERM, end)
    period_s = 0.010 if kind == "tick" else 0.200
    due_s = time.monotonic()
    while not ended:
        due_s = max(due_s + period_s, time.monotonic())
        time.sleep(max(0.0, due_s - time.monotonic()))
        if kind == "fork":
            due_s = time.monotonic()
            os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
        worst_s = max(worst_s, time.monotonic() - due_s)
    Path(out).write_text(json.dumps({"worst_s": round(worst_s, 3), "quiet_s": round(quiet_s, 3)}))


def run(protection: str, user: str, rate: str) -> None:
    out = Path(os.environ["OUT"])
    Path("/proc/self/oom_score_adj").write_text("-900")  # this driver only: whatever it starts gets 0 again
    as_user = ["choom", "-n", "0", "--"] + (["asuser"] if user == "lab" else [])
    NOTES.touch()
    NOTES.chmod(0o666)
    if protection == "earlyoom":
        subprocess.run(["systemctl", "start", "earlyoom"], check=True)
    if protection == "oomd":
        units = ["systemd-oomd.socket", "systemd-oomd.service"]
        subprocess.run(["systemctl", "unmask", *units], check=True)
        subprocess.run(["systemctl", "start", *units], check=True)
    sleeper = "b = b'x' * (80 << 20); import time; time.sleep(9999)"
    bystander = ["asuser", "systemd-run", "--user", "-q", "--unit=bystander", "python3", "-c", sleeper]
    subprocess.run(bystander, check=True)
    canaries = [
        subprocess.Popen(["choom", "-n", "0", "--", "python3", HERE, "canary", kind, str(out / f"{kind}.json")])
        for kind in ("tick", "fork")
    ]
    command = ["sleep", "6"] if protection == "idle" else ["python3", HERE, "hog", rate]
    if protection in ("memsup", *NOT_ITS_OWN):
        folders = [f"MEMSUP_STATE_DIR=/tmp/{user}-state", f"MEMSUP_RUNTIME_DIR=/tmp/{user}-runtime"]
        memsup = ["env", *folders, f"PYTHONPATH={os.environ['PYTHONPATH']}", "python3", "-c"]
        memsup += ["import sys; from memsup.supervisor.cli import main; sys.exit(main())"]
        hold = [*memsup, "start", *LIMITS, "--", "sleep", "1"]  # everything is read from the disk once, as on a machine in use
        subprocess.run([*as_user, *hold], check=True, stdout=subprocess.DEVNULL)
    time.sleep(5)
    guarded = ["sleep", "1000"] if protection in NOT_ITS_OWN else command if protection == "memsup" else None
    if guarded is not None:
        start = [*as_user, *memsup, "start", "--run", "hog", *LIMITS, "--", *guarded]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL)
        status = [*as_user, *memsup, "status", "--json", "--run", "hog"]
    if protection in NOT_ITS_OWN:
        time.sleep(15)  # as in the middle of a night
        pid = json.loads(subprocess.run(status, capture_output=True, check=True).stdout)["pid"]
        faults_before = major_faults(pid)
    if protection == "stopped":
        os.kill(pid, signal.SIGSTOP)
    if protection != "memsup":
        scope = ["systemd-run", *(["--user"] if user == "lab" else []), "--scope", "-q", "--unit=hog"]
        process = subprocess.Popen([*as_user, *scope, *command])
    if protection != "idle":
        ends(lambda: NOTES.stat().st_size > 0)
    for one in canaries:  # what counts begins with the hog, not with the start of programs on emulated processors
        one.send_signal(signal.SIGUSR1)
    ended = ends(lambda: deaths(user) > 0 if protection == "memsup" else process.poll() is not None)
    time.sleep(2)
    alive = all(one.poll() is None for one in canaries)
    for one in canaries:
        one.terminate()
        one.wait()
    said, own_stall_s, own_major_faults = "", None, None
    if protection == "stopped":
        os.kill(pid, signal.SIGCONT)
    if guarded is not None:
        said = subprocess.run(status, capture_output=True, text=True, check=False).stdout
        own_stall_s = json.loads(said)["worst_stall_s"]
        own_major_faults = major_faults(pid) - faults_before if protection in NOT_ITS_OWN else None
        shutil.copy(f"/tmp/{user}-state/hog/ledger.jsonl", out)
        subprocess.run([*as_user, *memsup, "stop", "--now", "--run", "hog"], check=False, stdout=subprocess.DEVNULL)
    if protection != "memsup":
        said += f"exit status {process.poll()}"
        subprocess.run(["pkill", "-KILL", "-f", "case.py hog"], check=False)  # in this throw-away machine only
    notes = (NOTES.read_text().split() or ["0", "0", "0"])[:3]
    active = subprocess.run(
        ["asuser", "systemctl", "--user", "is-active", "bystander"], capture_output=True, text=True, check=False
    )
    result = {
        "protection": protection,
        "user": user,
        "rate": rate,
        "ended": ended,
        "ran_s": round(float(notes[1]) - float(notes[0]), 2),
        "took_mib": int(notes[2]) >> 20,
        "tick": json.loads((out / "tick.json").read_text()),
        "fork": json.loads((out / "fork.json").read_text()),
        "canaries_alive": alive,
        "bystander": active.stdout.strip(),
        "own_stall_s": own_stall_s,
        "own_major_faults": own_major_faults,
        "said": said[-3000:],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: result[key] for key in ("protection", "ended", "ran_s", "took_mib", "tick", "fork", "bystander")}))


def ends(over: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + ENDS_WITHIN_S
    while time.monotonic() < deadline_s:
        if over():
            return True
        time.sleep(0.05)
    return False


def major_faults(pid: int) -> int:
    """Pages that the process, all its threads, has had to wait for (proc_pid_stat(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])


def deaths(user: str) -> int:
    ledger = Path(f"/tmp/{user}-state/hog/ledger.jsonl")
    return ledger.read_text().count('"event":"death"') if ledger.exists() else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hog", rate]:
            hog(rate)
        case ["canary", kind, out]:
            canary(kind, out)
        case ["run", protection, user, rate]:
            run(protection, user, rate)
        case _:
            sys.exit(__doc__)
