"""The command line: its entry, and how the outcome of a command becomes an exit code.

`memsup --help` and `memsup status` have to answer at once, so nothing is imported here but what prints (`screen.py`). The
commands are `group.py`'s, which is click's; the one that is asked again and again, `memsup status`, goes without it
(`look.py`). Data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence

from memsup.shared.commands import DEFAULT_RUN
from memsup.supervisor.cli import streams
from memsup.supervisor.cli.screen import guard, json_data, message
from memsup.supervisor.client.errors import REFUSED, RefusedError

INTERRUPTED = 130
_ALLOCATIONS = 100_000
"""Python looks for garbage after so many objects more, not after 700, as it would a hundred times among what imports make."""
LEAST_DESCRIPTORS = 72
"""What a supervisor needs (`room_for_peers` of its sockets): who has fewer is told so before anything is written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. With `arguments` it returns the exit code; without, as the program `memsup`, it ends the process with it,
    unless threads are still at work. Data is on stdout by then, messages are on stderr.
    """
    if arguments is None:  # else the process is somebody else's, whose garbage may hold files
        gc.set_threshold(_ALLOCATIONS)
    streams.take_over()
    guard()
    os.umask(os.umask(0o077) & 0o077)  # what memsup makes, and whom it starts, is never closed to its own user
    code = _run(sys.argv[1:] if arguments is None else arguments)
    streams.say_what_is_lost()
    if arguments is None and not _threads_at_work():
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)  # to take modules and objects down one by one takes a fifth of a `status`
    return code


def _threads_at_work() -> bool:
    """Whether there are threads that are waited for. Where nobody has asked for threads, there are none."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def _run(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code, which is also true where what was printed did not get out."""
    try:
        _check_surroundings(arguments)
        if arguments[:1] == ["status"] and (asked := plainly_asked(arguments[1:])) is not None:
            with _without_typing_extensions():
                from memsup.supervisor.cli.look import look
            return look(*asked)
        from memsup.supervisor.cli.group import called

        return called(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except streams.OutputLostError as error:
        return error.code
    except Exception as error:
        return _refusal(error, arguments)


@contextlib.contextmanager
def _without_typing_extensions() -> Iterator[None]:
    """Has msgspec, when it is imported inside, take from `typing` what it otherwise takes from there: the same, in a sixth of a
    `status` less.
    """
    sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if sys.modules["typing_extensions"] is None:
            del sys.modules["typing_extensions"]


def plainly_asked(arguments: Sequence[str]) -> tuple[str, bool] | None:
    """The run and whether a document is wanted, where the arguments of `memsup status` say no more than that. None means that
    they are click's to read, who also knows what is wrong with them.
    """
    run_name, as_json, rest = DEFAULT_RUN, False, list(arguments)
    while rest:
        match rest.pop(0).partition("="):
            case "--json", "", "":
                as_json = True
            case "--run", "", "" if rest:
                run_name = rest.pop(0)
            case "--run", "=", name:
                run_name = name
            case _:
                return None
    return run_name, as_json


def _check_surroundings(arguments: Sequence[str]) -> None:
    """Raises `RefusedError` for what no command could work with."""
    for argument in arguments:
        if not argument.isascii():
            from memsup.shared.paths import is_text

            if not is_text(argument):
                raise RefusedError(f"The argument {argument!r} is not UTF-8 text: rename the file, or write it in UTF-8.")
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= descriptors < LEAST_DESCRIPTORS:
        raise RefusedError(
            f"Only {descriptors} files may be open at a time here, and memsup needs {LEAST_DESCRIPTORS}: "
            "raise the limit with ulimit -n 1024."
        )


def as_document(arguments: Sequence[str], text: str, more: Iterable[str | tuple[str, ...]] = ()) -> None:
    """Says to a program that asked for a document why it gets no other one."""
    own = arguments.index("--") if "--" in arguments else len(arguments)
    if "--json" in arguments[:own] and streams.is_silent():
        lines = [line if isinstance(line, str) else "  ".join(line) for line in more]
        json_data({"schema": 1, "ok": False, "error": text, "more": lines})


def _refusal(error: Exception, arguments: Sequence[str]) -> int:
    """Errors whose text was written for people are shown as it is; all others are bugs and keep their traceback."""
    from memsup.shared.data.errors import InputError
    from memsup.shared.paths import PathError
    from memsup.shared.record import RecordError
    from memsup.shared.settings import SettingsError

    if not isinstance(error, RefusedError | InputError | PathError | RecordError | SettingsError):
        raise error
    more = error.more if isinstance(error, RefusedError | SettingsError) else ()
    as_document(arguments, str(error), more)
    message(f"memsup: {error}", *more)
    return error.code if isinstance(error, RefusedError) else REFUSED
