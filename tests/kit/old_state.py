"""A run's folder as the state before the ledger had fields for programs left it (commit 1753ee0).

A squeezed, frozen, killed, heated, paused and stopped run of the tiny BERT under that state's own supervisor, on a disk that
was full for a while. `report.json` is what its `memsup report --json` made of these files. Nothing of it is ever made anew.
"""

from __future__ import annotations

from kit import TESTS
from memsup.supervisor.record.ledger import Entry, read_entry

OLD_STATE = TESTS / "data/old-state"


def old_entries() -> list[Entry]:
    return [read_entry(line) for line in (OLD_STATE / "ledger.jsonl").read_bytes().splitlines()]
