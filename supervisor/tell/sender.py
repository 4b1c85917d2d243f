"""`python -m memsup.supervisor.tell.sender`: carries messages out, so that the guard never waits for a network.

A small child of the supervisor. It reads one job a line from stdin (JSON: what, and to whom), forks for each, and the fork
tries until it was delivered, or `GIVE_UP_S` is over. A fork whose server keeps it for longer than that is ended. What came of
it goes to stdout, one JSON line a job, without an address in it. When the supervisor ends, stdin ends: what is on its way is
still given `FAREWELL_S`.

Addresses hold secrets (a bot's token, a mail password). They come over the pipe, or, as `file:/PATH` and `env:NAME`, are only
looked up here; they are in no argument, no log and no answer. `apprise` is imported by the fork alone, and only where there is
something for it; nothing heavy stays.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from memsup.shared.secret import is_file, is_variable, named

RETRY_AFTER_S = (5.0, 30.0, 120.0, 300.0, 300.0)
GIVE_UP_S = 900.0
PING_WITHIN_S = 20.0
"""A ping has this long as a whole, and the server half of it for each of its words."""
LAST_TRY_S = 60.0
"""A message whose last try begins just before it would be given up has this much longer."""
FAREWELL_S = 120.0
MOST_AT_ONCE = 8
MOST_LINE_BYTES = 256 * 1024


class AddressError(Exception):
    """An address cannot be used; the text says why without it."""


def addresses(specs: list[str], environment: Mapping[str, str]) -> list[str]:
    """The addresses that `specs` stand for. Raises `AddressError`."""
    found: list[str] = []
    for spec in specs:
        if spec.startswith("env:"):
            if not is_variable(spec[4:]):
                raise AddressError("What follows env: in notify is not a variable's name: write env:NAME.")
            value = environment.get(spec[4:], "")
            if not value:
                raise AddressError(f"The environment variable {spec[4:]} is not set.")
            found += value.split()
        elif spec.startswith("file:"):
            if not is_file(spec):
                raise AddressError("What follows file: in notify is not a file's whole path: write file:/PATH.")
            found += _file(spec[5:])
        else:
            found.append(spec)
    return found


def _file(path: str) -> list[str]:
    """The addresses in a file: one a line, and `#` begins a comment. Raises `AddressError`."""
    from memsup.shared.files import open_regular

    try:
        fd, _ = open_regular(os.path.expanduser(path))
        with os.fdopen(fd, encoding="utf-8") as file:
            if os.fstat(fd).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise AddressError(f"{path} can be read by others. Close it with: chmod 600 '{path}'")
            lines = [line.strip() for line in file.read(64 * 1024).splitlines()]
    except UnicodeDecodeError:
        raise AddressError(f"{path} cannot be read (not UTF-8).") from None
    except (OSError, ValueError) as error:  # a zero byte is in no path
        raise AddressError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    return [line for line in lines if line and not line.startswith("#")]


# --------------------------------------------------------------------------------------------------------------------
# One job, in its own process


def deliver(job: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[bool, str]:
    """Tries until the job is done or given up. Returns whether it was done, and a sentence about it."""
    try:
        if "ping" in job:
            return ping(addresses([str(job["ping"])], environment)[0])
        waiting = addresses([str(spec) for spec in job["urls"]], environment)
        tries = RETRY_AFTER_S if job.get("retry", True) else ()
        return _notify(waiting, str(job["title"]), str(job["text"]), tries)
    except AddressError as error:
        return False, str(error)
    except (KeyError, IndexError, TypeError):
        return False, "The job made no sense."


def _notify(waiting: list[str], title: str, text: str, tries: tuple[float, ...]) -> tuple[bool, str]:
    try:
        import apprise
    except ImportError:
        return False, "Messages need apprise, which is not installed: pip install 'memsup[notify]'"
    begun_s, reached, senders = time.monotonic(), [], []
    for address in waiting:
        sender = apprise.Apprise()
        if not sender.add(address):
            return False, f"One of notify.urls ({named(address)}) is not an address that apprise knows."
        senders.append((named(address), sender))
    if not senders:
        return False, "notify.urls is empty."
    for wait_s in (*tries, None):
        for name, sender in list(senders):
            if _sent(sender, title, text):
                senders.remove((name, sender))
                reached.append(name)
        if not senders or wait_s is None or time.monotonic() - begun_s + wait_s > GIVE_UP_S:
            break
        time.sleep(wait_s)
    to = ", ".join(reached)
    if senders:
        return False, f"Not delivered to: {', '.join(name for name, _ in senders)}" + (f"; delivered to: {to}." if to else ".")
    return True, f"Delivered to: {to}."


def _sent(sender: Any, title: str, text: str) -> bool:
    try:
        return bool(sender.notify(title=title, body=text))
    except Exception:  # a plugin's fault, and its text may hold the address
        return False


def ping(address: str) -> tuple[bool, str]:
    """Sends one GET; any status below 400 is an answer. What fails is tried again with the next ping, not before."""
    import http.client
    import urllib.error
    import urllib.request

    if named(address) not in ("http", "https"):
        return False, "notify.ping_url is not an http address."
    try:
        with urllib.request.urlopen(address, timeout=PING_WITHIN_S / 2) as answer:  # noqa: S310 - checked above
            answer.read(1)
    except urllib.error.HTTPError as error:
        return False, f"The ping was answered with {error.code}."
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"The ping was not answered ({type(error).__name__})."
    return True, "Pinged."


# --------------------------------------------------------------------------------------------------------------------
# The child


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the foreground is the supervisor's to answer
    _be_a_good_victim()
    working: dict[int, Job] = {}
    rest = b""
    os.set_blocking(0, False)
    while True:
        readable = select.select([0], [], [], 1.0 if working else None)[0]
        _collect(working)
        if not readable:
            continue
        more = os.read(0, 64 * 1024)
        if not more:
            break
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            _begin(line, working)
        if len(rest) > MOST_LINE_BYTES:
            rest = b""
    deadline_s = time.monotonic() + FAREWELL_S
    while working and time.monotonic() < deadline_s:
        time.sleep(0.05)
        _collect(working)
    for pid in working:
        os.kill(pid, signal.SIGKILL)
    return 0


class Job(NamedTuple):
    """A job that a fork works on."""

    number: int
    until_s: float
    """The fork is ended at this time."""


def _begin(line: bytes, working: dict[int, Job]) -> None:
    try:
        job = json.loads(line)
        number = int(job["id"])
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError):
        return
    if len(working) >= MOST_AT_ONCE:
        _answer(number, False, "Too many messages are on their way already.")
        return
    pid = os.fork()
    if pid:
        within_s = PING_WITHIN_S if "ping" in job else GIVE_UP_S + LAST_TRY_S
        working[pid] = Job(number, time.monotonic() + within_s)
        return
    try:
        logging.disable(logging.CRITICAL)  # apprise logs the addresses
        _answer(number, *deliver(job, os.environ))
    finally:
        os._exit(0)


def _answer(number: int, ok: bool, text: str) -> None:
    try:
        os.write(1, json.dumps({"id": number, "ok": ok, "text": text}).encode() + b"\n")
    except OSError:  # nobody listens any more
        pass


def _collect(working: dict[int, Job]) -> None:
    """Lets go of the forks that have ended. Ends those whose time is over: a server that says a byte now and then would keep
    them for ever, and each takes the place of a message.
    """
    for pid, job in list(working.items()):
        is_over = time.monotonic() > job.until_s
        if is_over:
            os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0 if is_over else os.WNOHANG)[0] == pid:
            del working[pid]
            if is_over:
                _answer(job.number, False, "It was not answered to the end in time.")


def _be_a_good_victim() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"800")
        os.close(fd)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
