"""A batch in parts of consecutive rows, whatever it is made of; and packed rows in parts of whole documents.

Rows are what the tensors of a batch have in common along their first dimension. What has no such dimension is passed on to each
part as it is. A part consists of views. Padding is cut off on the right alone, and only where a mask shows it,
labels ignore it and nothing else has that length (`trimmed`); whether the model agrees is asked by `cut_probe.py`.

A packed row holds several documents behind one another, each with positions from 0 on, as TRL makes them. It is cut where a
document begins whose first label is ignored: elsewhere the last token before the cut is to predict the first one after it.
"""

from __future__ import annotations

from typing import Any

from memsup.cut_tree import DOWN, Path, at, children, is_array, is_tensor, leaves, loaded_torch, mapped, with_others

IGNORED = -100
"""The label that losses ignore, torch's and everybody's default."""
_NAMES_OF_ROWS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features", "labels", "label")
_LENGTHS_OF_DOCUMENTS = {"cu_seq_lens_q", "cu_seq_lens_k"}
_MOST_OF_DOCUMENTS = {"max_length_q", "max_length_k"}


class Rows:
    """A batch that can be cut between any two of its rows."""

    def __init__(self, batch: Any, count: int, cut: frozenset[Path]) -> None:
        self.batch, self.count = batch, count
        self.cut = cut
        """Where there is something that has rows."""
        self.length = _length(batch, cut)
        """The tokens of a row, padding included; 1 where rows have no length."""

    def tokens(self, begin: int, end: int) -> int:
        """Rows × padded length."""
        return (end - begin) * self.length

    def part(self, begin: int, end: int) -> Any:
        """The rows from `begin` to before `end`, as a batch of the same type."""

        def change(path: Path, node: Any) -> Any:
            return node[begin:end] if path in self.cut else DOWN

        return mapped(self.batch, change)

    def some(self, begin: int, end: int) -> Rows:
        """The rows from `begin` to before `end`, as what can be cut again."""
        return Rows(self.part(begin, end), end - begin, self.cut)

    def fields(self) -> list[tuple[Path, Any]]:
        """The tensors that have rows."""
        return [(path, at(self.batch, path)) for path in sorted(self.cut, key=repr) if is_tensor(at(self.batch, path))]

    def by_row(self, values: Any) -> list[float]:
        """The sum of `values`, which has the shape of a field of this batch, in each row."""
        return [float(value) for value in values.reshape(values.shape[0], -1).sum(1).tolist()]


class Documents:
    """A batch of one packed row, which can be cut where its documents begin."""

    def __init__(self, batch: Any, starts: list[int], length: int) -> None:
        self.batch, self.count = batch, len(starts)
        self._bounds = [*starts, length]
        self.length = length

    def tokens(self, begin: int, end: int) -> int:
        return self._bounds[end] - self._bounds[begin]

    def part(self, begin: int, end: int) -> Any:
        """The documents from `begin` to before `end`, in one row. What says where documents lie is made anew."""
        first, last = self._bounds[begin], self._bounds[end]
        new: dict[str, Any] = {}
        for name, value in children(self.batch) or []:
            if name in _LENGTHS_OF_DOCUMENTS:
                new[name] = value[(value >= first) & (value <= last)] - first
            elif name in _MOST_OF_DOCUMENTS:
                lengths = self.batch[name.replace("max_length", "cu_seq_lens")].diff()
                inside = self.batch[name.replace("max_length", "cu_seq_lens")]
                most = lengths[(inside[:-1] >= first) & (inside[1:] <= last)].max()
                new[name] = most.to(value.dtype) if is_tensor(value) else int(most)
            elif is_tensor(value) and value.dim() >= 2:
                cut = value[:, first:last]
                new[name] = cut - cut[:, :1] if name == "seq_idx" else cut
        return with_others(self.batch, new)

    def some(self, begin: int, end: int) -> Documents:
        first = self._bounds[begin]
        bounds = [bound - first for bound in self._bounds[begin : end + 1]]
        return Documents(self.part(begin, end), bounds[:-1], bounds[-1])

    def fields(self) -> list[tuple[Path, Any]]:
        return [((name,), value) for name, value in children(self.batch) or [] if is_tensor(value) and value.dim() == 2]

    def by_row(self, values: Any) -> list[float]:
        """The sum of `values`, of shape (1, tokens), in each document. Where they are one column fewer it is the first that is
        missing, as in labels that are shifted.
        """
        missing = self.length - values.shape[1]
        bounds = self._bounds
        return [float(values[0, max(0, begin - missing) : end - missing].sum()) for begin, end in zip(bounds[:-1], bounds[1:])]


class Layouts:
    """Finds the rows of batches, and what has none in them: that is passed on for good, also where its size happens to fit."""

    def __init__(self) -> None:
        self._passed_on: set[Path] = set()
        self._cut: set[Path] = set()
        self._last: tuple[Any, int, frozenset[Path]] | None = None
        """The form of the last batch, its rows, and where they are. It is None where that has to be looked for."""

    def find(self, batch: Any) -> Rows | Documents | None:
        """How `batch` can be cut. It is None where that is not to be seen, or was otherwise in a batch before. Most are of the
        form of the one before, which takes less than half of the time.
        """
        form = _form(batch)
        if form is not None and self._last is not None and form == self._last[0]:
            return Rows(batch, self._last[1], self._last[2])
        found = self._look_for(batch)
        self._last = (form, found.count, found.cut) if form is not None and isinstance(found, Rows) else None
        return found

    def _look_for(self, batch: Any) -> Rows | Documents | None:
        if any(is_tensor(leaf) and not _is_plain(leaf) for _, leaf in leaves(batch)):
            return None
        documents = _documents(batch)
        if documents is not None:
            return documents
        count = _count(batch)
        if count is None:
            return None
        cut: set[Path] = set()
        passed_on: set[Path] = set()
        _sort(batch, count, (), cut, passed_on)
        cut -= self._passed_on
        if self._cut & passed_on:  # it had rows, and now has others
            return None
        self._passed_on |= passed_on
        self._cut |= cut
        return Rows(batch, count, frozenset(cut))


def _form(batch: Any) -> Any:
    """What of a batch decides where its rows are, if it consists of nothing but tensors by their names. It is None where more
    may decide it.
    """
    if isinstance(batch, (list, tuple)):
        return None
    form = []
    for name, value in children(batch) or ():
        if not is_tensor(value) or not _is_plain(value) or value.dim() == 0 or name == "position_ids":
            return None
        form.append((name, value.dim(), value.shape[0]))
    return form or None


def _is_plain(tensor: Any) -> bool:
    return not tensor.is_nested and tensor.layout is loaded_torch().strided


def _count(batch: Any) -> int | None:
    """The number of rows. It is None where nothing says it."""
    found = _Evidence()
    _look(batch, (), found)
    for path, leaf in found.fields:
        if path and isinstance(path[-1], str) and path[-1].endswith(_NAMES_OF_ROWS):
            return int(leaf.shape[0])
    if found.fields:
        return int(found.fields[0][1].shape[0])
    if found.in_lists and (len(found.lists) < 2 or len(set(found.lists)) > 1):
        return int(found.in_lists[0].shape[0])
    return found.lists[0] if len(set(found.lists)) == 1 else None


class _Evidence:
    """What may say how many rows a batch has."""

    def __init__(self) -> None:
        self.fields: list[tuple[Path, Any]] = []
        """The arrays that are fields for certain."""
        self.in_lists: list[Any] = []
        """Those in lists, which may be lists of fields, or of rows."""
        self.lists: list[int] = []
        """How long these lists are."""


def _look(node: Any, path: Path, found: _Evidence, *, is_listed: bool = False) -> None:
    if is_array(node):
        if len(node.shape) >= 1 and is_listed:
            found.in_lists.append(node)
        elif len(node.shape) >= 1:
            found.fields.append((path, node))
        return
    if isinstance(node, (list, tuple)) and not hasattr(node, "_fields"):
        if _is_list_of_samples(node):
            found.lists.append(len(node))
            return
        if path:
            found.lists.append(len(node))
            is_listed = True
            if not _has_common_rows(node):
                return
    for key, child in children(node) or []:
        _look(child, (*path, key), found, is_listed=is_listed)


def _is_list_of_samples(node: Any) -> bool:
    """Whether this is no batch, but a list of rows that nobody has put together: mappings with a number for a label, say."""
    if not node or any(is_array(child) or children(child) is None or isinstance(child, (list, tuple)) for child in node):
        return False
    has_numbers = any(isinstance(leaf, (int, float)) and not isinstance(leaf, bool) for _, leaf in leaves(node))
    return has_numbers or not _has_common_rows(node)


def _has_common_rows(node: Any) -> bool:
    arrays = [leaf for _, leaf in leaves(node) if is_array(leaf)]
    return bool(arrays) and all(len(leaf.shape) >= 1 for leaf in arrays) and len({leaf.shape[0] for leaf in arrays}) == 1


def _sort(node: Any, count: int, path: Path, cut: set[Path], passed_on: set[Path]) -> None:
    """Sorts what is to be cut from what is passed on, and says where it lies."""
    if is_array(node):
        if len(node.shape) >= 1:
            (cut if node.shape[0] == count else passed_on).add(path)
        return
    below = children(node)
    if below is None:
        return
    is_list = isinstance(node, (list, tuple)) and not hasattr(node, "_fields")
    if is_list and len(node) == count and not _all_have(node, count) and (path or _is_list_of_samples(node)):
        cut.add(path)
        return
    for key, child in below:
        _sort(child, count, (*path, key), cut, passed_on)


def _all_have(node: Any, count: int) -> bool:
    """Whether there are tensors below, all with so many rows: then this is a list of fields, and not of rows."""
    arrays = [leaf for _, leaf in leaves(node) if is_array(leaf)]
    return bool(arrays) and all(len(leaf.shape) >= 1 and leaf.shape[0] == count for leaf in arrays)


def _length(batch: Any, cut: frozenset[Path]) -> int:
    fields = [at(batch, path) for path in cut]
    return max((int(field.shape[1]) for field in fields if is_array(field) and len(field.shape) in {2, 3}), default=1)


# --------------------------------------------------------------------------------------------------------------------
# Packed rows


def _documents(batch: Any) -> Documents | None:
    """The documents of a packed row. None where this is none, or none that can be cut."""
    below: dict[Any, Any] = dict(children(batch) or []) if not isinstance(batch, (list, tuple)) else {}
    positions = below.get("position_ids")
    if (
        positions is None
        or not is_tensor(positions)
        or positions.dim() != 2
        or positions.shape[0] != 1
        or "attention_mask" in below
    ):
        return None
    length = int(positions.shape[1])
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    if len(starts) < 2 or starts[0] != 0:
        return None
    labels = below.get("labels")
    if labels is None or not is_tensor(labels) or tuple(labels.shape) != (1, length):
        return None
    for name, value in below.items():
        if name in _LENGTHS_OF_DOCUMENTS:
            if value.tolist() != [*starts, length]:
                return None
        elif name in _MOST_OF_DOCUMENTS:
            if name.replace("max_length", "cu_seq_lens") not in below:
                return None
        elif children(value) if not is_array(value) else len(value.shape) >= 1 and tuple(value.shape[:2]) != (1, length):
            return None
    ignored = (labels[0] == IGNORED).tolist()
    return Documents(batch, [0, *(start for start in starts[1:] if ignored[start])], length)


# --------------------------------------------------------------------------------------------------------------------
# Padding


def trimmed(part: Any) -> Any | None:
    """The same rows without the columns on the right that are padding in all of them. It is None where there are none, or where
    it is not certain that nothing else depends on them.
    """
    found = False

    def change(_path: Path, node: Any) -> Any:
        nonlocal found
        below = children(node)
        if below is None or isinstance(node, (list, tuple)):
            return DOWN
        fields = dict(below)
        new: dict[Any, Any] = {}
        for name in fields:
            if isinstance(name, str) and name.endswith("attention_mask"):
                new.update(_without_padding(fields, name))
        found = found or bool(new)
        return (
            with_others(node, {**new, **{key: mapped(child, change) for key, child in below if key not in new}})
            if new
            else DOWN
        )

    shorter = mapped(part, change)
    return shorter if found else None


def _without_padding(fields: dict[Any, Any], name: str) -> dict[str, Any]:
    """The shorter fields that belong to the mask of that name. Empty where nothing is cut off."""
    mask = fields[name]
    if not is_tensor(mask) or mask.dim() != 2 or mask.is_floating_point():
        return {}
    rows, length = mask.shape
    used = (mask != 0).any(0).nonzero()
    kept = int(used[-1]) + 1 if len(used) else length
    if kept == length:
        return {}
    prefix = name[: -len("attention_mask")]
    others = [key[: -len("attention_mask")] for key in fields if isinstance(key, str) and key.endswith("attention_mask")]
    new: dict[str, Any] = {}
    for key, value in fields.items():
        if not is_tensor(value) or value.dim() == 0 or not isinstance(key, str):
            continue
        if not key.startswith(prefix) or any(key.startswith(other) for other in others if len(other) > len(prefix)):
            continue
        if value.dim() == 1:
            if key.endswith(("_position", "_positions")) and bool((value >= kept).any()):
                return {}
            continue
        if tuple(value.shape[:2]) != (rows, length):
            if length in value.shape[1:]:  # it has this length, but not where it could be cut with the rest
                return {}
            continue
        if key.endswith(("labels", "label_ids")) and bool((value[:, kept:] != IGNORED).any()):
            return {}
        if length in value.shape[2:]:
            return {}
        new[key] = value[:, :kept].contiguous()  # as it came, which models count on
    return new
