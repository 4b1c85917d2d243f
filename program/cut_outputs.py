"""What a program computes for parts of a batch, joined to what it would have computed for all of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from memsup.cut_tree import children, is_array, is_tensor, leaves, loaded_torch, rebuilt

PADDED_WITH = -100
"""What Trainer's `nested_concat` fills up with where outputs have different lengths."""


class NotJoinableError(Exception):
    """The outputs of parts say nothing certain of the whole."""


def numbers(outputs: Any) -> list[Any]:
    """The single numbers with a fraction among `outputs`, a loss say, in their order."""
    return [leaf for _, leaf in leaves(outputs) if _is_number(leaf)]


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, float) or (is_array(leaf) and len(leaf.shape) == 0 and _has_fraction(leaf))


def _has_fraction(array: Any) -> bool:
    return bool(array.is_floating_point()) if is_tensor(array) else array.dtype.kind == "f"


def joined(outputs: Sequence[Any], rows: Sequence[int], weights: Sequence[Sequence[float]]) -> Any:
    """The outputs of parts of so many `rows`, as those of the whole: tensors behind one another, filled up along their second
    dimension where lengths differ; numbers added up by `weights`, of each number those of the parts. Raises
    `NotJoinableError`.
    """
    left = list(weights)
    return _joined(list(outputs), rows, left)


def _joined(nodes: list[Any], rows: Sequence[int], left: list[Sequence[float]]) -> Any:
    first = nodes[0]
    if any(type(node) is not type(first) for node in nodes[1:]):
        raise NotJoinableError("they are of different types")
    if _is_number(first):
        return sum(node * weight for node, weight in zip(nodes, left.pop(0)))
    if is_array(first):
        return _in_a_row(nodes, rows)
    if isinstance(first, list) and all(len(node) == count for node, count in zip(nodes, rows)) and not _has_arrays(first):
        return [child for node in nodes for child in node]
    below = [children(node) for node in nodes]
    if below[0] is None:
        if any(node is not first and node != first for node in nodes[1:]):
            raise NotJoinableError(f"a {type(first).__name__} differs from part to part")
        if type(first) is int and all(node == count for node, count in zip(nodes, rows)):
            raise NotJoinableError("a whole number may be that of the rows")
        return first
    if isinstance(first, Mapping) or not isinstance(first, (list, tuple)):
        keys = [[key for key, _ in some or []] for some in below]
    else:
        keys = [list(range(len(node))) for node in nodes]
    if any(some != keys[0] for some in keys):
        raise NotJoinableError("they have different fields")
    together = []
    for i, key in enumerate(keys[0]):
        together.append((key, _joined([(some or [])[i][1] for some in below], rows, left)))
    return rebuilt(first, together)


def _has_arrays(node: Any) -> bool:
    return any(is_array(leaf) and len(leaf.shape) >= 1 for _, leaf in leaves(node))


def _in_a_row(arrays: list[Any], rows: Sequence[int]) -> Any:
    if len(arrays[0].shape) == 0:
        if any(bool(array != arrays[0]) for array in arrays[1:]):
            raise NotJoinableError("a whole number differs from part to part")
        return arrays[0]
    times = {array.shape[0] / count for array, count in zip(arrays, rows)}
    if len(times) != 1 or not next(iter(times)).is_integer():
        raise NotJoinableError("they do not have the rows of their part")
    if any(array.shape[2:] != arrays[0].shape[2:] for array in arrays[1:]):
        raise NotJoinableError("they have different shapes")
    lengths = {array.shape[1] for array in arrays} if len(arrays[0].shape) > 1 else {1}
    library = loaded_torch() if is_tensor(arrays[0]) else sys.modules["numpy"]
    behind = library.cat if is_tensor(arrays[0]) else library.concatenate
    if len(lengths) == 1:
        return behind(arrays)
    longest = max(lengths)
    filled = []
    for array in arrays:
        shape = (array.shape[0], longest, *array.shape[2:])
        new = array.new_full(shape, PADDED_WITH) if is_tensor(array) else library.full(shape, PADDED_WITH, array.dtype)
        new[:, : array.shape[1]] = array
        filled.append(new)
    return behind(filled)
