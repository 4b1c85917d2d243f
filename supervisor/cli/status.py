"""`memsup status` as a command, with all of its options; what it does is in `look.py`."""

from __future__ import annotations

import click

from memsup.supervisor.cli.look import look
from memsup.supervisor.cli.options import json_option, run_option


@click.command(short_help="Show state, progress, limits and the last action.")
@run_option
@json_option
@click.option("--verbose", "-v", is_flag=True, help="Also what training makes of this machine's arithmetic.")
@click.option("--watch", is_flag=True, help="On a screen of its own, with keys, until the run ends.")
def status(run_name: str, as_json: bool, verbose: bool, watch: bool) -> int:
    """Show what the run does, how far it is, and what was done last and why.

    Exit code: 0 alive or finished, 1 needs attention, 3 stopped, 4 unknown run.
    """
    return look(run_name, as_json, verbose=verbose, watch=watch)
