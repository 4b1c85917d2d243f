"""What a task's data and model are refused with."""

from __future__ import annotations


class InputError(Exception):
    """A task's data or model cannot be used; the text is one plain sentence with what to do."""
