"""Collects what a post-mortem needs: the black box, the logs of the boot in which it ends, crash dumps, the newest checkpoint.

Reads, with a deadline, and changes nothing. What cannot be read (no journal, no permission) is None with the reason beside it;
a reading person can be told what would have helped. To be called before the worker starts: it runs `journalctl`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from memsup.checkpoint.info import Info
from memsup.supervisor.record.blackbox import Frame, Mark, Recording
from memsup.supervisor.record.postmortem import Evidence, Line

DEADLINE_S = 8.0
"""How long each call of journalctl may take; a journal of years on a slow disk takes seconds."""
MOST_LINES = 3_000
MOST_DUMP_BYTES = 256 * 1024
PSTORE = (Path("/sys/fs/pstore"), Path("/var/lib/systemd/pstore"))
"""The kernel's own folder of crash dumps, and the one to which systemd-pstore(8) moves them at boot."""
_STAMPED = re.compile(r"(\d{9,11}\.\d+) (.*)")
_DUMP_PREFIX = re.compile(r"(?:<\d+>)?\[ *\d+\.\d+\] ?")


def collect(recording: Recording, *, boot: str, now_unix_s: float, checkpoint: Info | None) -> Evidence:
    """All that can be found out. `boot` is this boot's id, `checkpoint` the newest that is usable. It takes seconds at
    most, and never raises.
    """
    unread: list[str] = []
    last = recording.last
    kernel = journal = dumps = None
    if last is not None and last.mark != Mark.CLEAN:
        kernel = _journal(last, ["-k"], unread)
        if kernel is None and last.boot == boot:
            kernel = _kernel_ring(now_unix_s, unread)
        journal = _journal(last, [], unread)
        dumps = _crash_dumps(unread)
    return Evidence(
        frames=recording.frames,
        broken=recording.broken,
        boot=boot,
        now_unix_s=now_unix_s,
        booted_unix_s=now_unix_s - time.clock_gettime(time.CLOCK_BOOTTIME),
        kernel=kernel,
        journal=journal,
        crash_dumps=dumps,
        checkpoint_step=checkpoint.step if checkpoint else None,
        checkpoint_path=str(checkpoint.path) if checkpoint else None,
        checkpoint_unix_s=checkpoint.created_unix_s if checkpoint else None,
        checkpoint_verified=False,
        unread=tuple(dict.fromkeys(unread)),
    )


def _journal(last: Frame, options: list[str], unread: list[str]) -> tuple[Line, ...] | None:
    """The last lines of the boot in which the black box ends. Returns None where there are none to be had; `unread` then says
    why.
    """
    boot = last.boot.replace("-", "")
    if not re.fullmatch(r"[0-9a-f]{32}", boot):
        unread.append("The black box names no boot, so its log could not be looked up.")
        return None
    command = ["journalctl", "--quiet", "--no-pager", "-o", "short-unix", "-b", boot, "-n", str(MOST_LINES), *options]
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath), "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, check=False, env=environment
        )
    except FileNotFoundError:
        unread.append("There is no journal here (journalctl is not installed).")
        return None
    except (OSError, subprocess.TimeoutExpired):
        unread.append(f"The journal did not answer within {DEADLINE_S:.0f} s.")
        return None
    lines = tuple(_stamped(done.stdout.decode(errors="replace")))
    if done.returncode != 0 or not lines:
        unread.append(
            "The journal keeps nothing of that boot that this user may read "
            "(it needs Storage=persistent in journald.conf, and the user in the group systemd-journal)."
        )
        return None
    return lines


def _stamped(text: str) -> Iterator[Line]:
    """The lines of `-o short-unix`, each of which has seconds, host, who, and text."""
    for line in text.splitlines():
        found = _STAMPED.match(line)
        if found:
            yield Line(float(found[1]), found[2].partition(" ")[2])


def _kernel_ring(now_unix_s: float, unread: list[str]) -> tuple[Line, ...] | None:
    """What the running kernel still has in memory (Documentation/ABI/testing/dev-kmsg), where this user may read it."""
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    lines: list[Line] = []
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        unread.append(f"The kernel's log cannot be read by this user ({error.strerror}).")
        return None
    try:
        while len(lines) < 10 * MOST_LINES:
            try:
                record = os.read(fd, 8192).decode(errors="replace")
            except BrokenPipeError:  # overwritten while we read; the next record comes
                continue
            head, _, text = record.partition(";")
            fields = head.split(",")
            since_boot_s = int(fields[2]) / 1e6 if len(fields) > 2 and fields[2].isdecimal() else up_s
            lines.append(Line(now_unix_s - up_s + since_boot_s, text.partition("\n")[0]))
    except OSError:  # EAGAIN: that was the last one
        pass
    finally:
        os.close(fd)
    return tuple(lines[-MOST_LINES:])


def _crash_dumps(unread: list[str], folders: tuple[Path, ...] = PSTORE) -> tuple[Line, ...] | None:
    """The kernel's lines in every dump, with the dump's date. Returns None where no folder could be looked into."""
    lines: list[Line] = []
    readable = False
    for folder in folders:
        try:
            files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
            os.listdir(folder)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                unread.append(f"{folder} cannot be read by this user ({error.strerror}).")
            continue
        readable = True
        for file in files[:50]:
            try:
                with file.open("rb") as dump:
                    content = dump.read(MOST_DUMP_BYTES).decode(errors="replace")
                at = file.stat().st_mtime
            except OSError:
                unread.append(f"{file} cannot be read by this user.")
                continue
            lines += [Line(at, _DUMP_PREFIX.sub("", line, count=1)) for line in content.splitlines() if line.strip()]
    return tuple(lines) if readable else None
