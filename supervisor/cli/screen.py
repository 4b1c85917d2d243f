"""The one place through which all that the command line prints goes.

`data`, `message` and `json_data` print. Each text that they are given is one line, and whatever in it could drive a terminal
or begin a line of its own is shown as �, wherever it came from. A tuple of texts is a row, and rows that follow one another are
a table; `layout.py` breaks both at the terminal's width. `moving` draws the same in its place again and again, by way of
`console`, which is rich. What others write to the two streams (warnings of libraries, tracebacks, click's help) passes `guard`.
Colours are `paint`'s: they carry a number that nobody outside of this process can know, so that no other text can colour or
hide anything.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from memsup.shared.printable import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from memsup.supervisor.cli.layout import Line

_OURS = int.from_bytes(os.urandom(8))
_PAINT = re.compile(rf"\x1b\[{_OURS};(\d+)m")
USUAL_CELLS, LEAST_CELLS = 80, 20
_CODES = {"plain": 0, "bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34}


def paint(text: str, *styles: str) -> str:
    """`text` in colour, or bold or dim, for `data` and `message` to show where there is a terminal for it."""
    begin = "".join(f"\x1b[{_OURS};{_CODES[style]}m" for style in styles)
    return f"{begin}{text}\x1b[{_OURS};{_CODES['plain']}m" if styles else text


def shown(line: str, *, in_colour: bool) -> str:
    """A line as the terminal gets it."""
    parts = _PAINT.split(line)
    for place, part in enumerate(parts):
        parts[place] = printable(part) if place % 2 == 0 else f"\x1b[{part}m" if in_colour else ""
    return "".join(parts)


def data(*lines: Line, hang: int = 0) -> None:
    """Prints what the command was asked for, on stdout. What goes on below a line begins `hang` cells further in."""
    _print(sys.stdout, lines, hang)


def as_printed(*lines: str) -> None:
    """Prints lines on stdout that somebody else wrote as lines, of whatever width."""
    _write(sys.stdout, "".join(shown(line, in_colour=False) + "\n" for line in lines))


def message(*lines: Line) -> None:
    """Prints what a person should know beside it, on stderr."""
    _print(sys.stderr, lines)


def json_data(document: bytes | dict[str, Any]) -> None:
    """Prints one JSON document on stdout, without the secrets that lie in it."""
    _write(sys.stdout, printable_json(document.decode() if isinstance(document, bytes) else _encoded(document)) + "\n")


def moves(stream: Any) -> bool:
    """Whether what is drawn on it can be drawn again in its place: only on a terminal that has more than lines."""
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def colour(stream: Any) -> bool:
    """Whether to print in colour: only on a terminal, and not where NO_COLOR is set (https://no-color.org: to anything but
    the empty string).
    """
    return not os.environ.get("NO_COLOR") and moves(stream)


def cells(stream: Any) -> int | None:
    """The width of the terminal, or COLUMNS where it does not know. None is no terminal: nothing is broken there."""
    if not stream.isatty():
        return None
    asked = os.environ.get("COLUMNS", "")
    told = int(asked) if asked.isdecimal() and len(asked) < 5 else 0
    return max(_columns(stream) or told or USUAL_CELLS, LEAST_CELLS)


def _columns(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 0


@contextmanager
def moving(stream: TextIO, *, stays: bool = True) -> Iterator[Callable[..., None]]:
    """Lines and rows that are drawn in one place again each time when what this yields is called with them; what is printed
    meanwhile with `data` or `message` scrolls by above. The last ones stay, or are wiped out. Asks for a stream that `moves`.
    """
    from rich.live import Live
    from rich.text import Text

    on = console(stream)
    with Live(console=on, transient=not stays, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def draw(*lines: Line) -> None:
            text = "\n".join(drawn(lines, cells(stream), in_colour=colour(stream)))
            live.update(Text.from_ansi(text, no_wrap=True), refresh=True)

        yield draw


def console(stream: TextIO) -> Console:
    """What rich draws with, on `stream`: its own control sequences pass, the texts are made harmless."""
    from rich.console import Console

    class Screen(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable_lines(segment.text))

    of_the_past = {"COLUMNS", "LINES"} if _columns(stream) else set()  # a terminal that was made smaller since
    return Screen(file=unguarded(stream), _environ={k: v for k, v in os.environ.items() if k not in of_the_past})


@contextmanager
def full_screen(stream: TextIO) -> Iterator[Callable[[Iterable[str]], None]]:
    """The whole terminal, as long as this lasts; then what stood there before is back. What this yields is given all lines of
    the screen, as `drawn` makes them.
    """
    from rich.live import Live
    from rich.text import Text

    out = console(stream)
    with Live(console=out, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:

        def draw(lines: Iterable[str]) -> None:
            live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)

        yield draw


class Guarded:
    """A stream to which no text can write what drives a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.unguarded = stream

    def write(self, text: str | bytes) -> int:
        """Bytes are what click has for the shell that completes a word."""
        self.unguarded.write(printable_lines(text.decode(errors="replace") if isinstance(text, bytes) else text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # the way past `write`, which click takes where the terminal is no UTF-8
            raise AttributeError(name)
        return getattr(self.unguarded, name)


def guard() -> None:
    """From now on nothing that this process writes to stdout or stderr drives the terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Guarded):
            setattr(sys, name, Guarded(stream))


def _print(stream: TextIO, lines: Iterable[Line], hang: int = 0) -> None:
    text = drawn(lines, cells(stream), in_colour=colour(stream), hang=hang)
    _write(stream, "".join(line + "\n" for line in text))


def drawn(lines: Iterable[Line], cells: int | None, *, in_colour: bool, hang: int = 0) -> Iterable[str]:
    """Lines and rows as a terminal of that width gets them."""
    from memsup.supervisor.cli.layout import laid_out

    def as_shown(line: Line) -> Line:
        if isinstance(line, str):
            return shown(line, in_colour=in_colour)
        return tuple(shown(cell, in_colour=in_colour) for cell in line)

    return laid_out(map(as_shown, lines), cells, hang)


def _write(stream: TextIO, text: str) -> None:
    unguarded(stream).write(text)
    stream.flush()


def unguarded(stream: TextIO) -> TextIO:
    """The stream behind a `Guarded`, or `stream` itself."""
    return stream.unguarded if isinstance(stream, Guarded) else stream


def _encoded(document: dict[str, Any]) -> str:
    import msgspec

    try:
        return msgspec.json.encode(document, enc_hook=_hidden).decode()
    except UnicodeEncodeError:  # a path that is not UTF-8, for which JSON has escapes
        import json

        return json.dumps(msgspec.to_builtins(document, enc_hook=_hidden))


def _hidden(value: Any) -> str:
    """The encoder asks about what it does not know: secrets are told of as such, and nothing else is expected."""
    from memsup.shared.secret import Secret

    if isinstance(value, Secret):
        return str(value)
    raise NotImplementedError(f"a {type(value).__name__} has no place in a document")
