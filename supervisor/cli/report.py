"""`memsup report`: the night on one page with plots, and a screenful of it here."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memsup.shared.commands import command
from memsup.shared.files import replace_file
from memsup.shared.paths import RunPaths, paths_of
from memsup.shared.status import OVER, Status
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.cli.streams import must_be_read
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.errors import RefusedError

if TYPE_CHECKING:
    from memsup.supervisor.report.account import Account
    from memsup.supervisor.report.gather import Material

UNKNOWN = 4
FOLLOW_EVERY_S = 5


@click.command(short_help="The night on one page, with plots.")
@run_option
@json_option
@click.option(
    "--output", metavar="FILE", help="Where the page goes; '-' is stdout.  [default: report.html in the run's folder]"
)
@click.option("--follow", is_flag=True, help="Keep an open page current until the run ends.")
def report(run_name: str, as_json: bool, output: str | None, follow: bool) -> int:
    """Show what the run did and what it cost, and write it as one HTML page with plots.

    The page needs neither a network nor another file. Exit code: 0 written, 4 unknown run.
    """
    paths = paths_of(run_name)
    file = Path(output) if output else paths.state / "report.html"
    if follow and (output == "-" or as_json):
        raise click.UsageError("--follow writes a page again and again; it goes with neither --output - nor --json.")
    status = observe(paths).status
    if status is None:
        message(f"There is no run {run_name!r} in {paths.state.parent}. Start it with: {command('start', run_name)}")
        return UNKNOWN
    if follow and status.state not in OVER:
        _write(paths, status, file, again_s=FOLLOW_EVERY_S)
        message(f"Open {file.absolute()} in a browser; it follows the run until that ends, or until Ctrl-C.")
        while status.state not in OVER:
            time.sleep(FOLLOW_EVERY_S)
            status = observe(paths).status or status
            _write(paths, status, file, again_s=None if status.state in OVER else FOLLOW_EVERY_S)
    return _report(paths, status, file, output, as_json)


def _report(paths: RunPaths, status: Status, file: Path, output: str | None, as_json: bool) -> int:
    from memsup.supervisor.report.page import page
    from memsup.supervisor.report.terminal import screen

    if output == "-":
        data(*page(*_reckoned(paths, status)).split("\n"))
        must_be_read()
        return 0
    material, reckoned = _write(paths, status, file)
    if as_json:
        json_data(reckoned.as_document() | {"page": os.path.abspath(file)})
    else:
        data(*screen(material, reckoned))
        message("", f"The page with the plots: {file.absolute()}")
    return 0


def _reckoned(paths: RunPaths, status: Status) -> tuple[Material, Account]:
    from memsup.supervisor.report.account import account
    from memsup.supervisor.report.gather import gather

    material = gather(paths, status, time.time())
    return material, account(material)


def _write(paths: RunPaths, status: Status, file: Path, again_s: int | None = None) -> tuple[Material, Account]:
    """Writes the page, and gives back what it is made of. Raises `RefusedError`."""
    from memsup.supervisor.report.page import page

    material, reckoned = _reckoned(paths, status)
    try:
        if file.exists() and not file.is_file():
            raise RefusedError(f"{file} is not a file that could be replaced; choose another one with --output.")
        replace_file(file, page(material, reckoned, again_s=again_s).encode())
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}. Choose another one with --output.") from None
    return material, reckoned
