"""The last thing between the supervisor and the worker: enters the fence, then becomes the command.

    python -I -S launch.py [--environment NAME VALUE]… [--oom-score-adj N] [--data-limit BYTES] [--write FILE TEXT]… -- COMMAND…

Runs as a file of its own with the standard library only, since it must start fast and wherever Python does. Everything is done
in the process that becomes the command, so that not one page of the command is ever charged outside. If a step fails that
the fence depends on, the command is not started: exit code 125 and one sentence on stderr.

PR_SET_PDEATHSIG is not used: it fires on the death of the thread that spawned. The worker's lifeline does its work.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys

COULD_NOT_LAUNCH = 125


def main(arguments: list[str]) -> int:
    try:
        while arguments[0] != "--":
            carry_out(arguments)
    except OSError as error:
        print(f"memsup: the fence could not be entered ({error}); the command was not started.", file=sys.stderr)
        return COULD_NOT_LAUNCH
    command = arguments[1:]
    # A core dump of gigabytes would fill the disk just when memory has run out; the hard limit stays for who wants one.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    own_session()
    forget_signals()
    try:
        os.execvp(command[0], command)  # noqa: S606 - a list, no shell
    except OSError as error:
        print(f"memsup: {command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
        return COULD_NOT_LAUNCH


def carry_out(arguments: list[str]) -> None:
    """Takes the first option and its values off `arguments` and does what it says. Raises OSError."""
    match arguments.pop(0):
        case "--environment":
            name, value = arguments.pop(0), arguments.pop(0)
            os.environ[name] = value
        case "--oom-score-adj":
            raise_oom_score(int(arguments.pop(0)))
        case "--data-limit":
            limit_data(int(arguments.pop(0)))
        case "--write":
            write(arguments.pop(0), arguments.pop(0))
        case option:
            raise ValueError(f"{option}: no such option")


def write(file: str, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def limit_data(limit_bytes: int) -> None:
    """Sets RLIMIT_DATA. Since Linux 4.7 it counts private writable mappings: malloc, stacks and anonymous mmap, not files."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def raise_oom_score(wanted: int) -> None:
    """Raises oom_score_adj. Anyone may; lowering it again needs a privilege. Where /proc hides it, the fence still holds."""
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:  # noqa: PTH123 - pathlib is slow to import
            if int(file.read()) < wanted:
                file.seek(0)
                file.write(str(wanted))
    except (OSError, ValueError):
        pass


def own_session() -> None:
    with contextlib.suppress(PermissionError):  # it leads a process group already: the spawning side made the session
        os.setsid()


def forget_signals() -> None:
    """Undoes what the command would inherit: Python ignores SIGPIPE and SIGXFSZ, and nohup and others may have ignored more."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):  # two or three belong to the C library
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
