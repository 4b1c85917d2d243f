"""`memsup drill`: a bad night in two minutes, on this machine, and what of it was proved.

Covers the order of the scenes, two at a time, and what is said. What happens in them is in `scenes.py`.
"""

from __future__ import annotations

import contextlib
import enum
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

from memsup.supervisor.cli import INTERRUPTED
from memsup.supervisor.cli.options import json_option
from memsup.supervisor.cli.screen import data, json_data, message, paint
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.drill.private_mounts import enter_user_namespace
from memsup.supervisor.drill.scenes import SCENES, Scene
from memsup.supervisor.drill.toy import NotProvedError, NotRehearsedError, OverError, Room
from memsup.supervisor.sense.machine import look
from memsup.supervisor.words import duration, pad

AT_A_TIME = 2
VERDICT_CELLS = 13
NAME_CELLS = max(len(name) for scene in SCENES for name in scene.names)
ALL_PROVED, NOT_ALL_PROVED = 0, 1


class Verdict(enum.StrEnum):
    PROVED = "proved"
    NOT_PROVED = "not proved"
    NOT_REHEARSED = "not rehearsed"


class Finding(NamedTuple):
    name: str
    verdict: Verdict
    text: str


@click.command(epilog="Exit code: 0 all that could be rehearsed was proved, 1 something was not.")
@click.option("--run", "run_name", expose_value=False, metavar="NAME", help="Taken as by every command; a drill has its own.")
@json_option
def drill(*, as_json: bool) -> int:
    """Rehearse a bad night in about two minutes: squeeze, runaway, kills, heat, full disk.

    Tiny runs of its own in a temporary folder, under real supervisors and fences; nothing of yours is touched. Takes up to two
    cores and 1.5 GiB of memory meanwhile.
    """
    began_s = time.monotonic()
    if os.geteuid() != 0:
        with contextlib.suppress(OSError):  # what needs a mount of its own says so itself
            enter_user_namespace()
    found: list[Finding] = []
    over = threading.Event()
    with _interrupts(over), _room(over) as room:
        if not as_json:
            message(f"Rehearsing in {room.folder}: two minutes, more on a busy machine. Ctrl-C ends it and cleans up.")
        for news in _play(room):
            if isinstance(news, Finding):
                found.append(news)
                if not as_json:
                    data(_row(news))
            elif not as_json:
                message(paint(f"  … {', '.join(news.names)}", "dim"))
    if over.is_set():
        message("Interrupted; all of it was cleaned up.")
        return INTERRUPTED
    took_s = time.monotonic() - began_s
    proved = all(finding.verdict is not Verdict.NOT_PROVED for finding in found)
    if as_json:
        findings = [finding._asdict() for finding in found]
        json_data({"schema": 1, "proved": proved, "took_s": round(took_s, 1), "findings": findings})
    else:
        message(f"{_counts(found)}, in {duration(took_s)}.")
    return ALL_PROVED if proved else NOT_ALL_PROVED


def _row(finding: Finding) -> tuple[str, ...]:
    """All of one width, though each is printed as it comes."""
    colour = {Verdict.PROVED: "green", Verdict.NOT_PROVED: "red", Verdict.NOT_REHEARSED: "yellow"}[finding.verdict]
    return paint(pad(finding.verdict, VERDICT_CELLS), colour), pad(finding.name, NAME_CELLS), finding.text


def _counts(found: list[Finding]) -> str:
    numbers = [(sum(finding.verdict is verdict for finding in found), verdict) for verdict in Verdict]
    return ", ".join(f"{number} {verdict}" for number, verdict in numbers if number)


@contextmanager
def _interrupts(over: threading.Event) -> Iterator[None]:
    """Ctrl-C, a closed terminal and a polite kill end the scenes, which end their runs."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: over.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _room(over: threading.Event) -> Iterator[Room]:
    """The drill's folder, with its janitor, who is done when this ends."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="memsup-drill-"))
    except OSError as error:
        raise RefusedError(f"No temporary folder can be made: {error.strerror}. Set TMPDIR.") from None
    os.environ["TMPDIR"] = str(folder)  # torch leaves a folder behind where it finds room for temporary things
    command = [sys.executable, "-P", "-m", "memsup.supervisor.drill.janitor", str(folder)]
    janitor = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)
    assert janitor.stdin is not None
    try:
        machine = look(folder, gpu_note="not looked at: a drill computes on the CPU")
        yield Room(folder=folder, machine=machine, over=over, janitor=janitor.stdin)
    finally:
        janitor.stdin.close()
        janitor.wait()


def _play(room: Room) -> Iterator[Finding | Scene]:
    """Plays all scenes, `AT_A_TIME`, each in a thread of its own, as its view of the file system may be. Scenes come as they
    begin, and findings as they are made.
    """
    stage = threading.Semaphore(AT_A_TIME)
    news: queue.SimpleQueue[Finding | Scene | None] = queue.SimpleQueue()

    def play(scene: Scene) -> None:
        with stage:
            news.put(scene)
            for finding in _findings(scene, room):
                news.put(finding)
        news.put(None)

    for scene in SCENES:
        threading.Thread(target=play, args=(scene,)).start()
    ended = 0
    while ended < len(SCENES):
        told = news.get()
        if told is None:
            ended += 1
        else:
            yield told


def _findings(scene: Scene, room: Room) -> Iterator[Finding]:
    names = iter(scene.names)
    if room.over.is_set():
        return
    try:
        for sentence in scene.play(room):
            yield Finding(next(names), Verdict.PROVED, sentence)
        return
    except OverError:
        return
    except NotRehearsedError as error:
        yield Finding(next(names), Verdict.NOT_REHEARSED, str(error))
    except NotProvedError as error:
        yield Finding(next(names), Verdict.NOT_PROVED, str(error))
    except Exception as error:
        yield Finding(next(names), Verdict.NOT_PROVED, f"{type(error).__name__}: {error}")
    for name in names:
        yield Finding(name, Verdict.NOT_REHEARSED, "It follows on the one before.")
