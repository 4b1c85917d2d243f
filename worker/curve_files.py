"""The two kinds of files that a run's curves are written to: TensorBoard's event files and Trackio's database.

Covers formats alone. What is written, and that nothing is written twice, is decided in `curves.py`. Both are written by the
libraries' own code, of which nothing here starts a server or contacts anybody: of Trackio only what writes into its database
is used, in this run's folder, whatever the environment says of hubs and servers.
"""

from __future__ import annotations

import io
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from memsup.shared.files import append_whole
from memsup.shared.settings import CurveKind

PROJECT = "memsup"
"""What Trackio calls a group of runs. Each run has its own database."""
_HUBS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL")
"""The variables by which Trackio sends elsewhere what it is given, or fetches what lies there."""


class Point(NamedTuple):
    """Values of one step, by the names of their curves."""

    step: int
    at_unix_s: float
    group: str
    """What they are of; no other point of this group is at this step."""
    values: dict[str, float]


class Marker(NamedTuple):
    """An intervention."""

    step: int
    at_unix_s: float
    kind: str
    text: str


class CurveFile(Protocol):
    """One of the two. Any exception may come out of a library; an OSError is worth trying again."""

    def begin(self, first_step: int) -> None:
        """Prepares for points of `first_step` and later. What there is of those was written by a life that was killed before it
        could note that, and comes again.
        """
        ...

    def write(self, points: Sequence[Point], markers: Sequence[Marker]) -> None:
        """Writes all of it. What is written again after an error is there once."""
        ...


def curve_file(kind: CurveKind, folder: Path, *, run: str, run_id: str) -> CurveFile:
    """The one of this kind in `folder`. Raises ImportError where its library is missing, and OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if kind is CurveKind.TENSORBOARD:
        return TensorBoard(folder)
    return Trackio(folder, run=run, run_id=run_id)


class TensorBoard:
    """An event file for each life of the worker, whose first event takes back what an earlier one has of the same steps."""

    def __init__(self, folder: Path) -> None:
        """Raises ImportError."""
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._tensor, self._shape = tensor_pb2, tensor_shape_pb2
        self._writer = RecordWriter
        self._folder = folder
        self._file = folder

    def begin(self, first_step: int) -> None:
        # Files are read in the order of their names, whatever the clock was set to in between.
        began = [int(file.name.split(".")[3]) for file in self._folder.glob("events.out.tfevents.[0-9]*")]
        second = max(int(time.time()), max(began, default=0) + 1)
        self._file = self._folder / f"events.out.tfevents.{second:010d}.memsup.{os.getpid()}"
        session = self._event.SessionLog(status=self._event.SessionLog.START)
        self._append(
            self._event.Event(wall_time=time.time(), file_version="brain.Event:2"),
            self._event.Event(wall_time=time.time(), step=first_step, session_log=session),
        )

    def write(self, points: Sequence[Point], markers: Sequence[Marker]) -> None:
        events = [(point.step, self._of_point(point)) for point in points]
        at_step: dict[int, list[Marker]] = defaultdict(list)
        for marker in markers:  # of one name and step TensorBoard shows the last text alone
            at_step[marker.step].append(marker)
        events += [(step, self._of_markers(step, found)) for step, found in at_step.items()]
        self._append(*(event for _, event in sorted(events, key=lambda pair: pair[0])))

    def _append(self, *events: object) -> None:
        """Adds the events to the file, all or none."""
        content = io.BytesIO()
        writer = self._writer(content)
        for event in events:
            writer.write(event.SerializeToString())  # type: ignore[attr-defined]
        append_whole(self._file, content.getvalue())

    def _of_point(self, point: Point) -> object:
        values = [self._summary.Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
        summary = self._summary.Summary(value=values)
        return self._event.Event(wall_time=point.at_unix_s, step=point.step, summary=summary)

    def _of_markers(self, step: int, markers: Sequence[Marker]) -> object:
        text = "\n\n".join(marker.text for marker in markers)
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        shape = self._shape.TensorShapeProto(dim=[self._shape.TensorShapeProto.Dim(size=1)])
        values = [
            self._summary.Summary.Value(
                tag="interventions/text_summary",
                metadata=self._summary.SummaryMetadata(plugin_data=plugin),
                tensor=self._tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape),
            )
        ]
        kinds = [marker.kind for marker in markers]
        values += [
            self._summary.Summary.Value(tag=f"interventions/{kind}", simple_value=kinds.count(kind))
            for kind in dict.fromkeys(kinds)
        ]
        return self._event.Event(wall_time=markers[-1].at_unix_s, step=step, summary=self._summary.Summary(value=values))


class Trackio:
    """A database of this run's own. What has been written carries an id, so that it is not written again."""

    def __init__(self, folder: Path, *, run: str, run_id: str) -> None:
        """Raises ImportError."""
        for name in _HUBS:
            os.environ.pop(name, None)
        os.environ["TRACKIO_DIR"] = str(folder)  # read once, when it is imported
        import sqlite3

        from trackio import sqlite_storage

        sqlite_storage.TRACKIO_DIR = folder  # it may have been imported before
        self._log: Callable[..., None] = sqlite_storage.SQLiteStorage.bulk_log
        self._alert: Callable[..., None] = sqlite_storage.SQLiteStorage.bulk_alert
        self._busy = sqlite3.OperationalError
        self._run, self._run_id = run, run_id

    def begin(self, first_step: int) -> None: ...

    def write(self, points: Sequence[Point], markers: Sequence[Marker]) -> None:
        try:
            self._write(points, markers)
        except self._busy as error:  # the disk is full, or somebody else reads
            raise OSError(str(error)) from error

    def _write(self, points: Sequence[Point], markers: Sequence[Marker]) -> None:
        self._log(
            PROJECT,
            self._run,
            [point.values for point in points],
            steps=[point.step for point in points],
            timestamps=[_iso(point.at_unix_s) for point in points],
            log_ids=[f"{self._run_id}:{point.group}:{point.step}" for point in points],
            run_id=self._run_id,
        )
        self._alert(
            PROJECT,
            self._run,
            [marker.kind for marker in markers],
            [marker.text for marker in markers],
            ["warn" for _ in markers],
            [marker.step for marker in markers],
            timestamps=[_iso(marker.at_unix_s) for marker in markers],
            alert_ids=[f"{self._run_id}:{marker.at_unix_s!r}:{marker.kind}" for marker in markers],
            run_id=self._run_id,
        )


def _iso(at_unix_s: float) -> str:
    return datetime.fromtimestamp(at_unix_s, UTC).isoformat()
