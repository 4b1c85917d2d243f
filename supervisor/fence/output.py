"""What a worker prints, on its way out of the fence: the supervisor's end of the pipe to `kernel/output_pump.py`."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import sys
from pathlib import Path

from memsup.supervisor.kernel import output_pump
from memsup.supervisor.kernel.children import spawn

PIPE_BYTES = 1 << 20
"""What a program may print at once while the pump does not get to run; the most that the kernel gives without privileges."""
START_AGAIN_AFTER_S = 1.0


class OutputPump:
    """One worker's pump, which is there from before the worker until nothing that came from it can print any more.

    Keeps the reading end of the pipe, so that a program never finds its output closed, whatever becomes of the pump.
    """

    def __init__(self, log: Path, run: str) -> None:
        """Starts the pump. Raises OSError, also where `log` cannot be opened."""
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        self._command = [sys.executable, "-I", "-S", output_pump.__file__, str(log), run]
        self._again_s = -math.inf
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        """`write_end` is what the worker prints into; to be closed here as soon as the worker has it."""
        with contextlib.suppress(OSError):  # this user's pipes have their share already: it stays smaller
            fcntl.fcntl(self._read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self._child = spawn(self._command, stdin=self._read_end)
        except OSError:
            os.close(self._read_end)
            os.close(self.write_end)
            raise

    @property
    def pidfd(self) -> int:
        """The descriptor that is readable once the pump has written everything, or has died."""
        return self._child.pidfd

    def step(self, now_s: float) -> bool:
        """Whether everything is written and the pump has gone; to be called now and then. One that died is started again."""
        code = self._child.exit_code()
        if code is None:
            return False
        if code == 0:
            self._child.close()
            os.close(self._read_end)
            return True
        if now_s >= self._again_s:
            self._again_s = now_s + START_AGAIN_AFTER_S
            with contextlib.suppress(OSError):  # no memory for it at the moment
                again = spawn(self._command, stdin=self._read_end)
                self._child.close()
                self._child = again
        return False
