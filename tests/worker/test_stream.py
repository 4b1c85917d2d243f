"""Data that are read as a stream: what a step sees does not depend on where a run was killed; files that changed are met."""

from __future__ import annotations

import gzip
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.data.errors import InputError
from memsup.shared.data.rows import read_rows
from memsup.shared.data.sources import Source, locate
from memsup.shared.data.streams import head_of
from memsup.shared.paths import RunPaths
from memsup.worker.plan.batches import EndlessOrder, EndlessSchedule
from memsup.worker.plan.position import Position
from memsup.worker.tasks.cache import heads
from memsup.worker.tasks.stream import Stream


class Piece(NamedTuple):
    said: str
    file: Path
    line: int


class Pieces:
    """Of a row as many rows to learn from as its label says, none to three, as a long text makes several."""

    def read(self, part: Source) -> Iterator[Piece]:
        for file, line, values in read_rows(part):
            for number in range(int(str(values["label"]))):
                yield Piece(f"{values['text']}.{number}", file, line)

    def write(self, folder: Path, rows: Iterator[Piece]) -> None:
        (folder / "rows.bin").write_text("\0".join(row.said for row in rows))

    def open(self, folder: Path) -> _Said:
        return _Said((folder / "rows.bin").read_text().split("\0"))


class _Said:
    """A block, of which nothing counts but what its rows say."""

    def __init__(self, rows: list[str]) -> None:
        self.rows = rows
        self.lengths = np.array([len(said) for said in rows], np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, indices: np.ndarray) -> str:
        return " ".join(self.rows[place] for place in indices)


class Reading:
    """A run that does nothing but look at the rows that its steps see."""

    def __init__(self, folder: Path, source: Source, schedule: EndlessSchedule, after: tuple[int, bytes] | None) -> None:
        self.stream = Stream(source, Pieces(), RunPaths("test", folder, folder), lambda: None, rows=schedule.rows, longest=99)  # type: ignore[arg-type]
        self.step, self.schedule = 0, schedule
        if after is not None:
            self.step = after[0]
            self.stream.go_on(msgspec.json.decode(after[1], type=Position))

    def checkpoint(self) -> tuple[int, bytes]:
        return self.step, msgspec.json.encode(self.stream.position(self.schedule.pass_of(self.step + 1)))

    def seen(self, steps: int, ahead: int = 0) -> list[str]:
        found = []
        order = EndlessOrder(self.schedule)
        for step in range(self.step + 1, self.step + 1 + steps):
            self.stream.forget_before(self.schedule.pass_of(step))
            found.append(self.stream.where(order.batch(step)))
            if ahead:
                assert self.stream.lengths[order.batch(step + ahead)].min() > 0
            self.step = step
        return found


def written(folder: Path, files: list[list[tuple[int, str]]], form: str) -> Source:
    """Files of rows that make so many rows each."""
    for number, rows in enumerate(files):
        if form == "csv":
            body = "text,label\n" + "".join(f'"{number}{more}{place}",{pieces}\n' for place, (pieces, more) in enumerate(rows))
            (folder / f"part-{number}.csv").write_text(body)
        else:
            body = "".join(
                msgspec.json.encode({"text": f"{number}{more}{place}", "label": pieces}).decode() + "\n"
                for place, (pieces, more) in enumerate(rows)
            )
            (folder / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(body.encode()))
    return head_of(locate([str(path) for path in sorted(folder.glob("part-*"))]))


rows = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["a", "b\n", "é\n\n", ""])), min_size=1, max_size=12)


@given(
    st.lists(rows, min_size=1, max_size=3).filter(lambda files: any(pieces for rows in files for pieces, _ in rows)),
    st.integers(1, 3),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), max_size=3),
    st.sampled_from(["csv", "jsonl.gz"]),
)
def test_what_steps_see_does_not_depend_on_where_it_was_killed(
    files: list[list[tuple[int, str]]], batch: int, batches: int, lives: list[tuple[int, int]], form: str
) -> None:
    """Also where rows make several, files are packed, a pass ends within a block, and more was read than was trained on."""
    schedule = EndlessSchedule(rows=batch * batches, effective_batch=batch, epochs=1.0, seed=3, max_steps=24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = written(folder, files, form)
        undisturbed = Reading(folder, source, schedule, None).seen(24)
        seen: list[str] = []
        after: tuple[int, bytes] | None = None
        for kept, lost in lives:
            life = Reading(folder, source, schedule, after)
            seen += life.seen(kept, ahead=3)
            after = life.checkpoint()
            life.seen(lost)
        assert seen + Reading(folder, source, schedule, after).seen(24 - len(seen)) == undisturbed

        # Nothing is left out and nothing comes twice: each pass has all rows, but for those that go on into the next block.
        made = ((number, place, *row) for number, rows in enumerate(files) for place, row in enumerate(rows))
        every = [f"{number}{more}{place}.{piece}" for number, place, pieces, more in made for piece in range(pieces)]
        taken = [said for step in undisturbed for said in step.split(" ")]
        whole = 24 // batches * batches * batch
        assert sorted(taken[:whole]) == sorted(every[place % len(every)] for place in range(whole))


@pytest.fixture
def read(tmp_path: Path) -> tuple[Path, EndlessSchedule, tuple[int, bytes]]:
    """A folder with a file of which a run has read eight rows, and its checkpoint."""
    source = written(tmp_path, [[(1, str(place % 10)) for place in range(40)]], "csv")
    schedule = EndlessSchedule(rows=4, effective_batch=2, epochs=1.0, seed=3, max_steps=40)
    life = Reading(tmp_path, source, schedule, None)
    life.seen(3)
    return tmp_path, schedule, life.checkpoint()


def go_on(read: tuple[Path, EndlessSchedule, tuple[int, bytes]]) -> list[str]:
    folder, schedule, after = read
    return Reading(folder, head_of(locate(str(folder / "part-0.csv"))), schedule, after).seen(1)


@pytest.mark.parametrize("line", [2, 9])
def test_a_file_that_is_another_up_to_where_a_run_was_is_refused(
    read: tuple[Path, EndlessSchedule, tuple[int, bytes]], line: int
) -> None:
    file = read[0] / "part-0.csv"
    lines = file.read_text().split("\n")
    lines[line - 1] = lines[line - 1].replace('",', 'x",')
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"part-0\.csv has changed up to line \d, .* memsup start .*--fresh"):
        go_on(read)


def test_a_file_may_grow_and_be_copied_while_it_is_read(read: tuple[Path, EndlessSchedule, tuple[int, bytes]]) -> None:
    expected = go_on(read)
    file = read[0] / "part-0.csv"
    with file.open("a") as grown:
        grown.write("more,1\n")
    assert go_on(read) == expected
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, (1, 1))
    assert go_on(read) == expected
    file.write_text("text,label\n")
    with pytest.raises(InputError, match="has changed"):
        go_on(read)


@pytest.mark.parametrize("block_is_kept", [True, False])
def test_a_file_may_grow_while_its_end_is_in_the_block_in_hand(tmp_path: Path, block_is_kept: bool) -> None:
    """What was read of the old end and of the next pass is trained on; then the new rows come, in their place of that pass."""
    source = written(tmp_path, [[(1, str(row)) for row in range(10)]], "csv")
    schedule = EndlessSchedule(rows=8, effective_batch=2, epochs=1.0, seed=3, max_steps=40)
    life = Reading(tmp_path, source, schedule, None)
    life.seen(5)  # in the second block, which has the last two rows and the first six
    after = life.checkpoint()
    expected = life.seen(3)
    life.seen(1)  # in the third one
    with (tmp_path / "part-0.csv").open("a") as grown:
        grown.writelines(f"new{row},1\n" for row in range(4))
    if not block_is_kept:
        (tmp_path / "cache" / "stream" / "block-1" / "rows.bin").write_text("else")
        with pytest.raises(InputError, match=r"from line 9 of .*part-0\.csv on is not what is read there now, .* --fresh"):
            Reading(tmp_path, source, schedule, after).seen(1)
        return
    again = Reading(tmp_path, source, schedule, after)
    assert again.seen(3) == expected
    then = {said for step in again.seen(4) for said in step.split(" ")}
    assert then == {f"0{row}{row}.0" for row in range(6, 10)} | {f"new{row}.0" for row in range(4)}
    on_disk = tmp_path / "cache" / "stream"
    assert {path.name for path in on_disk.iterdir()} == {"block-1", "block-2"}, "the checkpoint's, and the one in hand"
    for _ in range(3):
        again.checkpoint()
        again.seen(1)
    assert "block-1" not in {path.name for path in on_disk.iterdir()}, "no checkpoint goes on with it any more"


def test_the_first_rows_of_a_stream_are_those_of_its_run_however_files_grow(tmp_path: Path) -> None:
    written(tmp_path, [[(1, "a"), (1, "b")]], "csv")
    file = tmp_path / "part-0.csv"
    assert heads(locate, None)(str(file)).head_rows == 2
    with file.open("a") as grown:
        grown.write("more,1\n")
    assert len(list(read_rows(heads(locate, 2)(str(file))))) == 2
    assert heads(locate, None)(str(file)).head_rows == 3


def test_another_file_in_the_place_of_one_that_is_read_is_gone_on_with_where_it_says_the_same_up_to_there(
    tmp_path: Path,
) -> None:
    """Programs that write a file anew put another one in its place, such as rsync and editors."""
    source = written(tmp_path, [[(1, str(row % 10)) for row in range(40)]], "csv")
    file, new = tmp_path / "part-0.csv", tmp_path / "new"
    schedule = EndlessSchedule(rows=4, effective_batch=2, epochs=1.0, seed=3, max_steps=40)
    undisturbed = Reading(tmp_path, source, schedule, None).seen(6)
    life = Reading(tmp_path, source, schedule, None)
    seen = life.seen(1)
    new.write_text(file.read_text() + "more,1\n")
    new.rename(file)
    assert seen + life.seen(5) == undisturbed
    new.write_text(file.read_text().replace('"05', '"x5'))
    new.rename(file)
    with pytest.raises(InputError, match="has changed up to line 13"):
        life.seen(4)
    file.unlink()
    with pytest.raises(InputError, match="No such file"):
        life.seen(4)
    assert life.checkpoint()[0] == 6, "what was learnt is saved all the same"


def test_data_without_a_row_to_learn_from_end_no_run_in_a_circle(tmp_path: Path) -> None:
    source = written(tmp_path, [[(0, "a")] * 3], "csv")
    life = Reading(tmp_path, source, EndlessSchedule(rows=2, effective_batch=2, epochs=1.0, seed=3, max_steps=4), None)
    with pytest.raises(InputError, match="no row that can be learnt from"):
        life.seen(1)


def test_only_what_has_lines_is_read_as_a_stream(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"text": "a", "label": 1}]')
    with pytest.raises(InputError, match="jq -c"):
        head_of(locate(str(tmp_path / "rows.json")))
    (tmp_path / "set" / "pos").mkdir(parents=True)
    (tmp_path / "set" / "neg").mkdir()
    for name in ("pos", "neg"):
        for number in range(3):
            (tmp_path / "set" / name / f"{number}.txt").write_text("a text\nof lines")
    with pytest.raises(InputError, match="no file of lines"):
        head_of(locate(str(tmp_path / "set")))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Of 13 MB no more is held than a block and a piece of the file, and on the disk nothing but a block."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{'x' * 1600}{row},1\n" for row in range(8_000)))
    schedule = EndlessSchedule(rows=200, effective_batch=50, epochs=1.0, seed=3, max_steps=150)
    life = Reading(tmp_path, head_of(locate(str(tmp_path / "rows.csv"))), schedule, None)
    life.seen(5)
    tracemalloc.start()
    try:
        for _ in range(140):
            life.seen(1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6 << 20
    assert sum(file.stat().st_size for file in (tmp_path / "cache" / "stream").rglob("*.bin")) < 500_000
