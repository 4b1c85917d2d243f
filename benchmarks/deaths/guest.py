"""In the VM: `live FOLDER` notes into a black box as the supervisor does; `judge FOLDER` says what it died of."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, ".")

from memsup.supervisor.record import evidence, postmortem
from memsup.supervisor.record.blackbox import BlackBox, Facts, read_blackbox
from memsup.supervisor.sense.memory import MemorySensor


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def live(folder: Path) -> None:
    box, sensor, seconds = BlackBox(folder / "blackbox", boot_id()), MemorySensor(None), 0
    eaten = []
    while True:
        for _ in range(10):
            box.note(sensor.read(time.monotonic()))
            time.sleep(0.1)
        box.facts = Facts(state="running", phase="training", step=1000 + seconds)
        box.flush(time.monotonic(), time.time())
        seconds += 1
        if seconds == 8:
            (folder / "noted").touch()
            os.sync()
        if (folder / "eat").exists():
            while True:
                eaten.append(bytearray(os.urandom(1 << 20)))


def judge(folder: Path) -> None:
    history = read_blackbox(folder / "blackbox")
    found = evidence.collect(history, boot=boot_id(), now_unix_s=time.time(), checkpoint=None)
    verdict = postmortem.judge(found)
    assert verdict is not None
    for line in postmortem.told(found, verdict):
        print(f"| {line}")
    sectors = BlackBox(folder / "other", "x").writes_sectors
    print(f"| sector writes, frames, torn: {sectors} {len(history.frames)} {history.broken}")
    print(f"VERDICT {verdict.cause} {'sure' if verdict.sure else 'likely'}", flush=True)
    time.sleep(5)


{"live": live, "judge": judge}[sys.argv[1]](Path(sys.argv[2]))
