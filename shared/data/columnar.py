"""Rows of Parquet and Arrow files, unpacked a few at a time and only in the columns that count.

The names of numbered labels (`ClassLabel` of the datasets library) come with the file. pyarrow is imported where such a file is
opened, and not before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from memsup.shared.bounded import bounded_memory
from memsup.shared.data.errors import InputError
from memsup.shared.data.lines import something_else
from memsup.shared.data.row import Row
from memsup.shared.files import NotAFileError, UnreadableError, open_regular, read_document

MOST_BATCH_BYTES = 768 << 20
"""What so many rows as are unpacked at a time may take. Less than the GiB that pyarrow's allocator would reserve at once, and
that would leave nothing for the rest; it takes smaller pieces then."""
_BATCH_ROWS = 64


def parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    """All rows, or those of `columns` alone where the file has them. Raises InputError."""
    return _rows(path, columns, "Parquet", _parquet_batches)


def arrow_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    """The same of a file as `Dataset.save_to_disk` and Feather write it. Raises InputError."""
    return _rows(path, columns, "Arrow", _arrow_batches)


def _rows(path: Path, columns: Sequence[str] | None, kind: str, batches_of: Any) -> Iterator[Row]:
    try:
        import pyarrow
    except ImportError:
        raise InputError(f"Reading {path} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        fd, size_bytes = open_regular(path)  # pyarrow would wait for the writer of a pipe
        os.close(fd)
        if size_bytes == 0:
            raise InputError(f"{path} is empty: put the data into it.")
        with bounded_memory(MOST_BATCH_BYTES):
            schema, batches = batches_of(path, columns)
            names = _label_names(path, schema)
        while True:
            with bounded_memory(MOST_BATCH_BYTES):  # its few bytes may unpack to any number
                batch = next(batches, None)
                rows = batch.to_pylist() if batch is not None else []
            if batch is None:
                break
            del batch
            for values in rows:
                number += 1
                yield Row(path, number, {name: _plain(value, names.get(name)) for name, value in values.items()})
    except MemoryError:
        raise InputError(
            f"{path} is no file of texts: the {_BATCH_ROWS} rows after row {number:,} take more than "
            f"{MOST_BATCH_BYTES >> 20:,} MiB of memory. Look for what is so long there."
        ) from None
    except NotAFileError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, ValueError, OverflowError) as error:
        if number == 0 and (instead := something_else(path)) is not None:
            raise InputError(f"{path} {instead}") from None
        what = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{path} cannot be read as {kind} after row {number} ({what}): write the file again.") from None


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> tuple[Any, Iterator[Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path, memory_map=True)
    wanted = _wanted(file.schema_arrow, columns)
    return file.schema_arrow, file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False)


def _arrow_batches(path: Path, columns: Sequence[str] | None) -> tuple[Any, Iterator[Any]]:
    """Mapped, so that holding a file costs no memory. What is in it is checked before it is used: wrong offsets would be read
    from anywhere.
    """
    import pyarrow

    mapped = pyarrow.memory_map(str(path), "r")
    if mapped.read(6) == b"ARROW1":
        mapped.seek(0)
        file = pyarrow.ipc.open_file(mapped)
        schema, batches = file.schema, (file.get_batch(place) for place in range(file.num_record_batches))
    else:
        mapped.seek(0)
        stream = pyarrow.ipc.open_stream(mapped)
        schema, batches = stream.schema, iter(stream)
    wanted = _wanted(schema, columns)

    def pieces() -> Iterator[Any]:
        for batch in batches:
            chosen = batch if wanted is None else batch.select(wanted)
            for start in range(0, chosen.num_rows, _BATCH_ROWS):
                piece = chosen.slice(start, _BATCH_ROWS)
                piece.validate(full=True)
                yield piece

    return schema, pieces()


def _wanted(schema: Any, columns: Sequence[str] | None) -> list[str] | None:
    """All columns where none of those wanted is there, so that it can be said which there are."""
    return [name for name in dict.fromkeys(columns or ()) if name in schema.names] or None


def _plain(value: object, label_names: Sequence[str] | None) -> object:
    """The value as the other formats would have it."""
    if label_names is not None and isinstance(value, int):
        return label_names[value] if 0 <= value < len(label_names) else None  # -1 stands for no label
    if isinstance(value, list):
        return [_plain(one, label_names) for one in value]
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _label_names(path: Path, schema: Any) -> Mapping[str, Sequence[str]]:
    """Column → what its numbers stand for, as the datasets library writes it into the file, or beside it."""
    features: object = None
    try:
        if said := (schema.metadata or {}).get(b"huggingface"):
            features = json.loads(said)["info"]["features"]
        elif (beside := path.with_name("dataset_info.json")).is_file():
            features = read_document(beside, json.loads)["features"]
    except (ValueError, TypeError, KeyError, RecursionError, OSError, UnreadableError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {
        name: feature["names"]
        for name, feature in ((name, _of_each(feature)) for name, feature in features.items())
        if isinstance(feature, dict)
        and isinstance(feature.get("names"), list)
        and all(isinstance(each, str) for each in feature["names"])
        and feature.get("_type") == "ClassLabel"
    }


def _of_each(feature: object) -> object:
    """What each element of a list is, as several versions of datasets write it; what is no list is that itself."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature", feature) if isinstance(feature, dict) else feature
