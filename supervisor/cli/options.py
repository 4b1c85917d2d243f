"""What several commands share: `--run`, `--json`, and the folders of a run. How they print is in `screen.py`."""

from __future__ import annotations

import os
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
