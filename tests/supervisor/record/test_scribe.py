"""What the supervisor writes: lines whole or not at all, and those of a full disk when there is room again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from kit.cli_process import eventually
from kit.small_disk import MIB, fill, on_a_small_disk

from memsup.shared.files import replace_file
from memsup.supervisor.record.scribe import MOST_KEPT_BYTES, Scribe

LINE = b"x" * 999 + b"\n"


def test_lines_that_a_full_disk_does_not_take_come_when_it_does(tmp_path: Path) -> None:
    """In their order, each whole, and none is counted as lost."""

    def play() -> None:
        scribe = Scribe()
        scribe.start()
        ledger = tmp_path / "ledger.jsonl"
        scribe.append(ledger, b"first\n")
        scribe.carry_out("filling", lambda: fill(tmp_path))
        for number in range(50):
            scribe.append(ledger, b"%03d " % number + LINE)
        scribe.carry_out("making room", (tmp_path / "ballast").unlink)
        scribe.append(ledger, b"last\n")
        assert scribe.finish(within_s=10)
        assert scribe.lost == 0, scribe.last_error
        lines = ledger.read_bytes().splitlines()
        assert lines[0] == b"first"
        assert lines[-1] == b"last"
        assert [int(line[:3]) for line in lines[1:-1]] == list(range(50))

    on_a_small_disk(tmp_path, MIB, play)


def test_what_has_to_be_written_is_tried_until_it_is_and_the_newest_counts(tmp_path: Path) -> None:
    """As what a person wants of the run. Once it is there, nothing is owed and nothing was lost."""

    def play() -> None:
        scribe = Scribe()
        scribe.start()
        file = tmp_path / "wanted"
        scribe.keep(file, partial(replace_file, file, b"running"))
        eventually(lambda: not scribe.owes(file))
        ballast = fill(tmp_path)
        for wanted in (b"paused", b"stopped"):
            scribe.keep(file, partial(replace_file, file, wanted))
        eventually(lambda: scribe.last_error)
        assert scribe.owes(file)
        assert file.read_bytes() == b"running"
        ballast.unlink()
        eventually(lambda: not scribe.owes(file))
        assert file.read_bytes() == b"stopped"
        assert scribe.finish(within_s=10)
        assert scribe.lost == 0

    on_a_small_disk(tmp_path, MIB, play)


def test_a_disk_that_stays_full_costs_bounded_memory_and_is_counted(tmp_path: Path) -> None:
    """And what is there is not torn."""

    def play() -> None:
        scribe = Scribe()
        scribe.start()
        ledger = tmp_path / "ledger.jsonl"
        scribe.append(ledger, LINE)
        scribe.carry_out("filling", lambda: fill(tmp_path))
        for _ in range(MOST_KEPT_BYTES // len(LINE) + 20):
            scribe.append(ledger, LINE)
        assert scribe.finish(within_s=10)
        assert scribe.lost > 0
        assert "No space left" in (scribe.last_error or "")
        assert ledger.read_bytes().endswith(b"\n")

    on_a_small_disk(tmp_path, MIB, play)
