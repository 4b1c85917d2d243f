"""The report in a real browser: headless Chromium draws it, its pixels are looked at, and its console has nothing to say."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.nights import eventful

from memsup.shared.paths import run_paths
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather
from memsup.supervisor.report.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="not run: no Chromium here (Debian: apt-get install chromium)"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
]
WIDTH, HEIGHT = 560, 1200
TRAINING, PAUSED, OFF = (0x5A, 0xA9, 0x8B), (0xB9, 0xB2, 0xA6), (0x3C, 0x3F, 0x46)
"""Colours of the page's strip and bar, from its style sheet."""


@dataclass
class Seen:
    text: str
    colours: Counter[tuple[int, int, int]]
    console: list[str]


def look(html: str, folder: Path, *flags: str) -> Seen:
    """The page as a person's browser has it: its text, its pixels, and what the console said."""
    file, shot = folder / "report.html", folder / "shot.png"
    file.write_text(html, encoding="utf-8")
    assert CHROMIUM is not None
    base = [CHROMIUM, *FLAGS, *flags, f"--window-size={WIDTH},{HEIGHT}"]
    text, console = "", []
    for number, what in enumerate((["--dump-dom"], [f"--screenshot={shot}"])):
        done = subprocess.run(
            [*base, f"--user-data-dir={folder / f'profile{number}'}", *what, file.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        text += done.stdout
        console += [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(text, colours(shot.read_bytes()), console)


def colours(png: bytes) -> Counter[tuple[int, int, int]]:
    """How many pixels have which colour; 8 bits a channel, not interlaced, as Chromium writes them (W3C PNG, 9.2)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    position, data, width, height, channels = 8, b"", 0, 0, 3
    while position < len(png):
        size, kind = struct.unpack(">I4s", png[position : position + 8])
        chunk = png[position + 8 : position + 8 + size]
        position += size + 12
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", chunk[:10])
            assert (depth, colour in (2, 6)) == (8, True)
            channels = 4 if colour == 6 else 3
        data += chunk if kind == b"IDAT" else b""
    raw, stride = zlib.decompress(data), width * channels
    found: Counter[tuple[int, int, int]] = Counter()
    above = bytearray(stride)
    for row in range(height):
        start = row * (stride + 1)
        line = bytearray(raw[start + 1 : start + 1 + stride])
        unfilter(raw[start], line, above, channels)
        found.update(zip(line[0::channels], line[1::channels], line[2::channels], strict=True))
        above = line
    return found


def unfilter(kind: int, line: bytearray, above: bytearray, channels: int) -> None:
    for i in range(len(line)):
        left = line[i - channels] if i >= channels else 0
        up, corner = above[i], above[i - channels] if i >= channels else 0
        match kind:
            case 0:
                return
            case 1:
                predicted = left
            case 2:
                predicted = up
            case 3:
                predicted = (left + up) // 2
            case _:
                estimate = left + up - corner
                predicted = min((left, up, corner), key=lambda value: abs(estimate - value))
        line[i] = (line[i] + predicted) & 0xFF


@pytest.fixture
def html(private_folders: Path) -> str:
    night = eventful(run_paths("default"))
    status = night.status()
    status.result = {"accuracy": 0.931, "majority_accuracy": 0.55}
    status.attention = ["<img src=x onerror=console.error(1)> & 训练完成"]
    material = gather(night.paths, status, night.at)
    return page(material, account(material))


def test_a_browser_draws_the_night_and_has_nothing_to_complain_about(html: str, tmp_path: Path) -> None:
    """The strip shows training, the pause and the hour without power in their colours; no error in the console."""
    seen = look(html, tmp_path)
    assert seen.console == []
    assert "Finished after 6 h" in seen.text
    assert seen.text.count("<svg") >= 9
    assert "&lt;img src=x onerror=console.error(1)&gt; &amp; 训练完成" in seen.text
    assert seen.colours[TRAINING] > 3 * seen.colours[PAUSED] > 3 * seen.colours[OFF] > 0
    assert seen.colours[0xFA, 0xF9, 0xF7] > WIDTH * HEIGHT / 4, "the light background"


def test_the_page_is_dark_where_people_like_it_dark(html: str, tmp_path: Path) -> None:
    """By the browser's own setting, without a script."""
    seen = look(html, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert seen.console == []
    assert seen.colours[0x15, 0x17, 0x1A] > WIDTH * HEIGHT / 4, "the dark background"
    assert seen.colours[0x3F, 0x8A, 0x70] > 1_000, "training, in the dark's colour"


def test_this_look_would_notice_an_error(tmp_path: Path) -> None:
    """A page that breaks its own policy is seen to: the checks above can fail."""
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    seen = look(f"<!doctype html>{policy}<p>x</p><script>alert(1)</script>", tmp_path)
    assert seen.console != []
