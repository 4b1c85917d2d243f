"""What several commands share: `--run`, `--json`, and how they print."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from memsup.shared.commands import DEFAULT_RUN

if TYPE_CHECKING:
    from collections.abc import Callable

    from memsup.shared.paths import RunPaths

run_option: Callable[[Any], Any] = click.option(
    "--run", "run_name", default=DEFAULT_RUN, metavar="NAME", help="Which run.", show_default=True
)
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def paths_of(run_name: str) -> RunPaths:
    """The folders of a run. Raises `PathError` for a name that cannot be a run's, and for a state folder that is not the
    user's.
    """
    from memsup.shared.paths import check_private, run_paths

    paths = run_paths(run_name)
    for folder in (paths.state.parent, paths.state):
        if os.path.lexists(folder):
            check_private(folder)
    return paths


def data(text: str) -> None:
    """Prints what the command was asked for, on stdout."""
    click.echo(text, color=colour(sys.stdout))


def message(text: str) -> None:
    """Prints what a person should know beside it, on stderr."""
    click.echo(text, err=True, color=colour(sys.stderr))


def json_data(document: bytes | dict[str, Any]) -> None:
    import msgspec

    encoded = document if isinstance(document, bytes) else msgspec.json.encode(document)
    click.echo(encoded.decode())


def colour(stream: Any) -> bool:
    """Whether to print in colour: only on a terminal, and not where NO_COLOR is set (https://no-color.org: to anything but
    the empty string).
    """
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
