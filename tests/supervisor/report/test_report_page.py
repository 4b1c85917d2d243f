"""The report in a real browser: headless Chromium draws it, its pixels are looked at, and its console has nothing to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.browser import CHROMIUM, WHY_NOT, Browser, browser
from kit.nights import Night, eventful

from memsup.shared.paths import prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.run_file import write_record
from memsup.shared.settings import Settings
from memsup.shared.status import RunState, Status, Wanted
from memsup.supervisor.decide.events import Event
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather
from memsup.supervisor.report.page import page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT),
    pytest.mark.xdist_group("browser"),
]
SIZES = [(390, 900), (1280, 1000)]
"""A phone's and a desk's window."""
TRAINING, PAUSED, OFF, GROUND = 0x5AA98B, 0xB9B2A6, 0x3C3F46, 0xFAF9F7
DARK_TRAINING, DARK_GROUND = 0x3F8A70, 0x15171A
"""Colours of the page's strip and bar, and of its background, from its style sheet."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def drawn(chromium: Browser, tmp_path: Path) -> Callable[..., list[str]]:
    """Draws a page; what it gives back is what the console said."""

    def draw(html: str, wide: int = 560, high: int = 1200, *, dark: bool = False) -> list[str]:
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        return chromium.draw(file, wide, high, dark=dark)

    return draw


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


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of such a night."""
    folder = tmp_path_factory.mktemp("night")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MEMSUP_STATE_DIR", str(folder / "state"))
        environment.setenv("MEMSUP_RUNTIME_DIR", str(folder / "runtime"))
        return page_of(a_night("default"))


def page_of(night: Night) -> str:
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


def test_a_browser_draws_the_night_and_has_nothing_to_complain_about(
    html: str, drawn: Callable[..., list[str]], chromium: Browser
) -> None:
    """The strip shows training, the pause and the hour without power in their colours; no error in the console."""
    assert drawn(html) == []
    text, svgs = chromium.evaluate("[document.body.innerText, document.querySelectorAll('svg').length]")
    assert "Finished after 6 h" in text.replace("\u00a0", " ")
    assert "<img src=x onerror=console.error(1)> & 训练完成" in text
    assert svgs >= 9
    colours = chromium.colours()
    assert colours[TRAINING] > 3 * colours[PAUSED] > 3 * colours[OFF] > 0


def test_this_look_would_notice_an_error(drawn: Callable[..., list[str]]) -> None:
    """A page that breaks its own policy is seen to: what is said of consoles can fail."""
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    assert drawn(f"<!doctype html>{policy}<p>x</p><script>alert(1)</script>") != []
    assert drawn("<!doctype html><script>console.error(1)</script>") != []
    assert drawn("<!doctype html><script>throw 1</script>") != []


MEASURE = """
(() => {
  const doc = document, view = window, wide = view.innerWidth, found = [];
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
  return {wide, texts, found};
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("wide", "high"), SIZES)
def test_the_page_can_be_read_on_a_phone_and_on_a_desk(
    wide: int, high: int, dark: bool, html: str, drawn: Callable[..., list[str]], chromium: Browser
) -> None:
    """Nothing is wider than the page, cut, written over something else, too small, or too pale; and it is drawn in the colours
    that the browser is set to, without a script.
    """
    assert drawn(html, wide, high, dark=dark) == []
    colours = chromium.colours()
    assert colours[DARK_GROUND if dark else GROUND] > wide * high / 4
    assert colours[DARK_TRAINING if dark else TRAINING] > 1_000
    seen = chromium.evaluate(MEASURE)
    assert seen["wide"] == wide
    assert seen["texts"] > 200
    assert seen["found"] == []
    assert "\ufffd" not in html


def test_these_measures_would_notice_what_is_wrong(drawn: Callable[..., list[str]], chromium: Browser) -> None:
    body = '<p style="width:900px;color:#ccc;background:#fff">pale and wide</p>'
    body += '<p style="overflow:hidden;width:20px">uncuttable</p>'
    body += '<svg viewBox="0 0 99 99"><text y="9">one</text><text y="9" font-size="7">two</text></svg>'
    drawn(f"<!doctype html><body>{body}", 390)
    wrong = {"outside of the page", "contrast", "cut or scrolled", "over one another"}
    assert {what for what, *_ in chromium.evaluate(MEASURE)["found"]} == wrong


BARE = {
    "nothing is known": Status(run="default", state=RunState.STOPPED, wanted=Wanted.STOPPED),
    "it failed at once": Status(
        run="a-name-of-a-run-that-is-as-long-as-" + "names-may-be-" * 2,
        state=RunState.FAILED,
        wanted=Wanted.RUNNING,
        failure=f"The model /home/{'long/' * 30}model cannot be loaded (no_such_file_in_any_folder_of_this_machine).",
        attention=["RuntimeError: " + "0x7f" * 60, "训练数据中有一行无法读取。" * 12],
    ),
    "a program": Status(run="p", state=RunState.FINISHED, wanted=Wanted.RUNNING, is_command=True, exit_code=0, restarts=3),
}


@pytest.mark.parametrize("status", BARE.values(), ids=BARE)
def test_a_page_with_next_to_nothing_can_be_read_as_well(
    status: Status, drawn: Callable[..., list[str]], chromium: Browser
) -> None:
    paths = run_paths(status.run)
    prepare(paths)
    material = gather(paths, status, 1_750_000_000.0)
    for wide, high in SIZES:
        assert drawn(page(material, account(material)), wide, high) == []
        assert chromium.evaluate(MEASURE)["found"] == []
