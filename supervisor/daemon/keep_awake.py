"""Keeps the machine awake while there is something to compute, and lets it sleep when there is not.

It does so through systemd-inhibit(1), which asks logind for a lock and runs a command under it. The command is a `cat` that
reads from us: when it is to end, or when the supervisor is gone, however it went, the pipe ends, `cat` ends, and with it the
lock. Where there is no logind, or it refuses, `why_not` says so and nothing else changes. A closed lid and a person who
suspends are obeyed.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from memsup.supervisor.kernel.processes import started_here

TRY_AGAIN_S = 600.0
SETTLED_AFTER_S = 5.0
"""A lock that was refused ends its process within milliseconds; on a busy machine a little later."""


class KeepAwake:
    def __init__(self, run: str) -> None:
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self._since_s = float("-inf")
        self.why_not: str | None = None
        """The sentence that says why the machine may fall asleep although it is to stay awake. It is None where none is
        known."""
        self._told: str | None = None

    def held(self, now_s: float) -> bool:
        """Whether the lock is held, as far as can be told."""
        return self._process is not None and self._process.poll() is None and now_s - self._since_s >= SETTLED_AFTER_S

    def news(self, now_s: float) -> str | None:
        """`why_not`, when it is new: the lock is tried for again and again, and a refusal is told once. Returns None if not."""
        fresh = self.why_not if self.why_not != self._told else None
        if self.why_not is not None or self.held(now_s):
            self._told = self.why_not
        return fresh

    def step(self, now_s: float, wanted: bool) -> None:
        """Takes, keeps or gives back the lock; to be called about once a second.

        May start a process, so memory must be calm where `wanted` becomes True.
        """
        if self._process is not None and self._process.poll() is not None:
            self._note_refusal(self._process)
            self._end()
        if wanted and self._process is None and now_s - self._since_s >= TRY_AGAIN_S:
            self._since_s = now_s
            self._begin()
        elif not wanted and self._process is not None:
            self._end()
            self._since_s = float("-inf")

    def close(self) -> None:
        self._end()

    def _begin(self) -> None:
        if shutil.which("systemd-inhibit") is None:
            self.why_not = "The machine may fall asleep: there is no systemd-inhibit here to keep it awake."
            return
        command = [
            "systemd-inhibit",
            "--what=sleep:idle",
            "--mode=block",
            "--who=memsup",
            f"--why=run {self._run} is training",
            "cat",
        ]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.why_not = f"The machine may fall asleep: systemd-inhibit cannot be run ({error.strerror})."
            return
        started_here(self._process.pid)
        self.why_not = None
        if self._process.stderr is not None:
            os.set_blocking(self._process.stderr.fileno(), False)

    def _note_refusal(self, process: subprocess.Popen[bytes]) -> None:
        said = b""
        if process.stderr is not None:
            try:
                said = os.read(process.stderr.fileno(), 4096)
            except OSError:
                pass
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        self.why_not = f"The machine may fall asleep: logind gave no lock ({lines[-1][:200] if lines else 'no reason given'})."

    def _end(self) -> None:
        """Lets the lock go: its `cat` sees the end of the pipe, and nobody waits for that."""
        process, self._process = self._process, None
        if process is not None:
            for stream in (process.stdin, process.stderr):
                if stream is not None:
                    stream.close()
            _ending.append(process)
        _ending[:] = [ended for ended in _ending if ended.poll() is None]


_ending: list[subprocess.Popen[bytes]] = []
"""Processes that were told to end and are not reaped yet."""
