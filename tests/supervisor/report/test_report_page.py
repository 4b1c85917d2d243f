"""The report in a real browser: headless Chromium draws it, its pixels are looked at, and its console has nothing to say."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.nights import Night, eventful

from memsup.shared.paths import run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.decide.events import Event
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
        text += done.stdout.replace("&nbsp;", " ").replace("\u00a0", " ")
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


def a_night(paths_name: str) -> Night:
    """Everything that a page can have: long names, several lines, a model, evaluations."""
    night = eventful(run_paths(paths_name))
    evaluated = [
        {"time": f"2026-05-28T2{n}:31:22Z", "level": "info", "event": "Evaluated", "step": n * 1000, "accuracy": 0.5 + n / 12}
        | {"loss": 0.7 / n}
        for n in range(1, 6)
    ]
    night.paths.worker_log.write_text("".join(json.dumps(line) + "\n" for line in evaluated))
    night.say(Event.POSTMORTEM, "The supervisor was killed.\nLast record: 8 s ago.\nThen: running", result="one\ntwo")
    return night


@pytest.fixture
def html(private_folders: Path) -> str:
    night = a_night("default")
    status = night.status()
    status.result = {"accuracy": 0.931, "majority_accuracy": 0.55}
    status.model_path = f"/home/{'a-long-name' * 8}/.local/state/memsup/default/model"
    status.attention = ["<img src=x onerror=console.error(1)> & 训练完成", "w" * 200]
    record = RunRecord(
        run="default",
        run_id="0123456789ab",
        created_unix_s=night.at,
        wanted=Wanted.RUNNING,
        tier="safe",
        tier_reason="there is enough",
        settings=Settings(),
    )
    write_record(night.paths.record, record)
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


MEASURE = """
const frame = document.querySelector("iframe");
frame.onload = () => {
  const doc = frame.contentDocument, view = frame.contentWindow, wide = view.innerWidth, found = [];
  doc.querySelectorAll("details").forEach(one => one.open = true);
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      if (at.classList.contains("badge") || !at.closest("svg")) {
        const colour = parse(view.getComputedStyle(at).backgroundColor);
        if (colour.length === 3 || colour[3] > 0) return colour;
      }
    }
    return [255, 255, 255];
  };
  let texts = 0;
  for (const node of doc.body.querySelectorAll("*")) {
    const style = view.getComputedStyle(node), box = node.getBoundingClientRect();
    if (style.display === "none" || !box.width || node.closest("title,defs")) continue;
    const name = node.tagName + "." + (node.getAttribute("class") || "") + ": " + node.textContent.slice(0, 60);
    if (box.right > wide + 0.5 || box.left < -0.5) found.push(["outside of the page", name, box.left, box.right]);
    if (!node.closest("svg") && node.scrollWidth > node.clientWidth + 1 && style.display !== "inline")
      found.push(["cut or scrolled", name, node.scrollWidth, node.clientWidth]);
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own) continue;
    texts += 1;
    const inSvg = node.closest("svg") !== null;
    const ink = parse(inSvg ? style.fill : style.color);
    const pin = node.classList.contains("pin-text") ? node.parentElement.querySelector("circle") : null;
    const behind = pin ? parse(view.getComputedStyle(pin).fill) : ground(inSvg ? node.closest("svg").parentElement : node);
    if (contrast(ink, behind) < 4.5) found.push(["contrast", name, contrast(ink, behind).toFixed(2), style.color]);
    const size = parseFloat(style.fontSize) * (inSvg ? node.closest("svg").getBoundingClientRect().width /
      node.closest("svg").viewBox.baseVal.width : 1);
    if (size < 10) found.push(["too small to read", name, size]);
    if (inSvg) for (const other of node.closest("svg").querySelectorAll("text")) {
      const that = other.getBoundingClientRect();
      if (other !== node && box.left < that.right - 1 && that.left < box.right - 1 && box.top < that.bottom - 3 &&
          that.top < box.bottom - 3) found.push(["over one another", name, other.textContent]);
    }
  }
  document.body.setAttribute("data-found", JSON.stringify({wide, texts, found, title: doc.title}));
};
"""


def measured(html: str, folder: Path, wide: int, *, dark: bool) -> dict[str, Any]:
    """What is wrong with the page in a window so wide, as a browser measures it: in a frame, whose page has no script."""
    (folder / "report.html").write_text(html, encoding="utf-8")
    frame = f'<!doctype html><body style="margin:0"><iframe src="report.html" style="border:0;width:{wide}px;height:900px">'
    (folder / "frame.html").write_text(f"{frame}</iframe><script>{MEASURE}</script>", encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            *(CHROMIUM, *FLAGS, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1600,1000"),
            *(f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--virtual-time-budget=5000"),
            *("--dump-dom", (folder / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    document: dict[str, Any] = json.loads(found[1].replace("&quot;", '"').replace("&lt;", "<").replace("&amp;", "&"))
    return document


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("wide", [390, 1280])
def test_the_page_can_be_read_on_a_phone_and_on_a_desk(wide: int, dark: bool, html: str, tmp_path: Path) -> None:
    """Nothing is wider than the page, cut, written over something else, too small, or too pale."""
    seen = measured(html, tmp_path, wide, dark=dark)
    assert seen["wide"] == wide
    assert seen["texts"] > 200
    assert seen["found"] == []
    assert "\ufffd" not in html


def test_these_measures_would_notice_what_is_wrong(tmp_path: Path) -> None:
    body = '<p style="width:900px;color:#ccc;background:#fff">pale and wide</p>'
    body += '<p style="overflow:hidden;width:20px">uncuttable</p>'
    seen = measured(f"<!doctype html><body>{body}", tmp_path, 390, dark=False)
    assert {what for what, *_ in seen["found"]} == {"outside of the page", "contrast", "cut or scrolled"}
