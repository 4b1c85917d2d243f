"""Commands that either process suggests to a person, as they have to be typed. Pure."""

from __future__ import annotations

DEFAULT_RUN = "default"
"""The name of the run that commands are about where none is given."""


def command(name: str, run_name: str) -> str:
    """A command to be suggested for the run, as it has to be typed."""
    return f"memsup {name}" + ("" if run_name == DEFAULT_RUN else f" --run {run_name}")
