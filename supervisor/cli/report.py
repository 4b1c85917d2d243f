"""`memsup report`: the night on one page with plots, and a screenful of it here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from memsup.shared.commands import command
from memsup.shared.files import replace_file
from memsup.supervisor.cli.options import json_option, paths_of, run_option
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.cli.streams import must_be_read
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.errors import RefusedError

UNKNOWN = 4


@click.command(short_help="The night on one page, with plots.")
@run_option
@json_option
@click.option(
    "--output", metavar="FILE", help="Where the page goes; '-' is stdout.  [default: report.html in the run's folder]"
)
def report(run_name: str, as_json: bool, output: str | None) -> int:
    """Show what the run did and what it cost, and write it as one HTML page with plots.

    The page needs neither a network nor another file. Exit code: 0 written, 4 unknown run.
    """
    from memsup.supervisor.report.account import account
    from memsup.supervisor.report.gather import gather
    from memsup.supervisor.report.page import page
    from memsup.supervisor.report.terminal import screen

    paths = paths_of(run_name)
    status = observe(paths).status
    if status is None:
        message(f"There is no run {run_name!r} in {paths.state.parent}. Start it with: {command('start', run_name)}")
        return UNKNOWN
    material = gather(paths, status, time.time())
    reckoned = account(material)
    html = page(material, reckoned)
    if output == "-":
        data(*html.split("\n"))
        must_be_read()
        return 0
    file = Path(output) if output else paths.state / "report.html"
    try:
        if output and file.exists() and not file.is_file():
            raise RefusedError(f"{file} is not a file that could be replaced; choose another one with --output.")
        replace_file(file, html.encode())
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}. Choose another one with --output.") from None
    if as_json:
        json_data(reckoned.as_document() | {"page": os.path.abspath(file)})
    else:
        data(*screen(material, reckoned))
        message("", f"The page with the plots: {file.absolute()}")
    return 0
