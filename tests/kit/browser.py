"""A headless Chromium that is started once and draws many pages: asked over a pipe, by the DevTools protocol
(https://chromedevtools.github.io/devtools-protocol). A page is drawn from a file, at a width and in a theme; then its text, its
pixels and whatever a script measures in it can be had. Its own policy keeps it from nothing of this.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memsup.shared.descriptors import wait_ready

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT = "not run: no Chromium here (Debian: apt-get install chromium)"
ANSWERS_WITHIN_S = 60.0
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


_COUNT = """
(async png => {
  const image = await createImageBitmap(await (await fetch("data:image/png;base64," + png)).blob());
  const drawn = new OffscreenCanvas(image.width, image.height).getContext("2d");
  drawn.drawImage(image, 0, 0);
  const counted = {}, {data} = drawn.getImageData(0, 0, image.width, image.height);
  for (let at = 0; at < data.length; at += 4) {
    const colour = data[at] << 16 | data[at + 1] << 8 | data[at + 2];
    counted[colour] = (counted[colour] || 0) + 1;
  }
  return counted;
})
"""


class Browser:
    """A browser with two tabs, asked and answering through the pipes `to_it` and `from_it`: one draws the pages, the other one
    is blank and counts what was drawn.
    """

    def __init__(self, to_it: int, from_it: int) -> None:
        self._to_it, self._from_it = to_it, from_it
        self._read = b""
        self._asked = 0
        self._events: list[dict[str, Any]] = []
        self._blank, self._tab = self._new_tab(), self._new_tab()  # the last one is in front, and painted
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def draw(self, file: Path, wide: int, high: int = 1200, *, dark: bool = False) -> list[str]:
        """Opens a file in a window so large; returns what the console said of it."""
        self._ask("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=False)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[theme])
        self._events.clear()
        self._ask("Page.navigate", url=file.as_uri())
        self._until(lambda event: event["method"] == "Page.loadEventFired")
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it is painted
        said = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"}
        return [json.dumps(event["params"]) for event in self._events if event["method"] in said]

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, or that of the promise which it is."""
        return self._evaluated(self._tab, script)

    def screenshot(self, high: int | None = None) -> bytes:
        """The whole page as PNG, or as much of it from its top."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = size | {"height": size["height"] if high is None else high, "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def colours(self) -> Counter[int]:
        """How many pixels of the whole page have which colour, such as 0xFAF9F7."""
        png = base64.b64encode(self.screenshot()).decode()
        counted = self._evaluated(self._blank, f"{_COUNT}({json.dumps(png)})")
        return Counter({int(colour): pixels for colour, pixels in counted.items()})

    def _new_tab(self) -> str:
        target = self._ask("Target.createTarget", "", url="about:blank")["targetId"]
        session: str = self._ask("Target.attachToTarget", "", targetId=target, flatten=True)["sessionId"]
        return session

    def _evaluated(self, tab: str, script: str) -> Any:
        done = self._ask("Runtime.evaluate", tab, expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def _ask(self, method: str, tab: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What is answered in a tab: the one with the pages unless another is named; "" is the browser itself."""
        self._asked += 1
        number = self._asked
        question = {"id": number, "method": method, "params": parameters}
        if session := self._tab if tab is None else tab:
            question["sessionId"] = session
        os.write(self._to_it, json.dumps(question).encode() + b"\0")
        answer = self._until(lambda told: told.get("id") == number)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def _until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first message that fits; what comes before is kept."""
        if (found := next((event for event in self._events if fits(event)), None)) is not None:
            return found
        while True:
            told = self._message()
            if "method" in told:
                self._events.append(told)
            if fits({"method": ""} | told):
                return told

    def _message(self) -> dict[str, Any]:
        until_s = time.monotonic() + ANSWERS_WITHIN_S
        while b"\0" not in self._read:
            ready = wait_ready([self._from_it], until_s - time.monotonic())
            assert ready, "the browser does not answer"
            part = os.read(self._from_it, 1 << 20)
            assert part, "the browser has gone"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser whose profile lies in `folder`, as long as this lasts."""
    assert CHROMIUM is not None
    its_input, to_it = os.pipe()
    from_it, its_output = os.pipe()
    # The protocol's two pipes are descriptors 3 and 4 of the browser, and a shell can give it those.
    redirected = 'exec "$@" 3<&"$0" 4>&' + str(its_output)
    process = subprocess.Popen(
        ["/bin/bash", "-c", redirected, str(its_input), CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(its_input, its_output),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )
    os.close(its_input)
    os.close(its_output)
    try:
        yield Browser(to_it, from_it)
    finally:
        os.close(to_it)  # with which it goes
        try:
            process.wait(20)
        finally:
            process.kill()
            os.close(from_it)
