"""Batches and outputs as trees: mappings, tuples, lists and dataclasses, nested at will, with tensors and other leaves.

Nothing is imported for it: torch and numpy are asked only where the program has imported them. A tree is never changed, but
built anew from its leaves, of the same types. What is no such container (a graph, a string, a number) is a leaf.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Callable

Path = tuple[Any, ...]
"""The keys and indices from the root to a node."""


def loaded_torch() -> Any:
    """torch, which the program has imported. Raises RuntimeError where it has not."""
    torch = sys.modules.get("torch")
    if torch is None:
        raise RuntimeError("torch is not imported by this program, so there is no step to cut.")
    return torch


def is_tensor(node: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(node, torch.Tensor)


def is_array(node: Any) -> bool:
    """Whether `node` is a tensor or an array of numpy's, with its `shape`."""
    numpy = sys.modules.get("numpy")
    return is_tensor(node) or (numpy is not None and isinstance(node, numpy.ndarray))


def children(node: Any) -> list[tuple[Any, Any]] | None:
    """The nodes below `node` by their keys. It is None where `node` is a leaf."""
    if isinstance(node, Mapping):
        return list(node.items())
    if isinstance(node, (tuple, list)):
        return list(enumerate(node))
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(field.name, getattr(node, field.name)) for field in dataclasses.fields(node) if hasattr(node, field.name)]
    return None


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All leaves, with the way to each."""
    below = children(node)
    if below is None:
        yield path, node
        return
    for key, child in below:
        yield from leaves(child, (*path, key))


def at(node: Any, path: Path) -> Any:
    """What is at `path`. Raises KeyError, IndexError, AttributeError or TypeError where there is nothing."""
    for key in path:
        is_field = dataclasses.is_dataclass(node) and not isinstance(node, Mapping)
        node = getattr(node, key) if is_field else node[key]
    return node


def mapped(node: Any, change: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same tree with other nodes: `change` gives a new node, or `DOWN` where it is to be asked for those below."""
    changed = change(path, node)
    if changed is not DOWN:
        return changed
    below = children(node)
    if below is None:
        return node
    return rebuilt(node, [(key, mapped(child, change, (*path, key))) for key, child in below])


DOWN = object()


def with_others(node: Any, others: Mapping[Any, Any]) -> Any:
    """A container like `node` with other children, where `others` has some."""
    return rebuilt(node, [(key, others.get(key, child)) for key, child in children(node) or []])


def rebuilt(node: Any, below: list[tuple[Any, Any]]) -> Any:
    """A container like `node` that holds `below`, and all else that `node` holds beside (as a `BatchEncoding` does)."""
    if isinstance(node, Mapping):
        if type(node) is dict:
            return dict(below)
        try:
            new: Any = copy.copy(node)
            for key, child in below:
                new[key] = child
        except TypeError:  # a mapping that cannot be changed
            return dict(below)
        return new
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*(child for _, child in below))
    if isinstance(node, (tuple, list)):
        return type(node)(child for _, child in below)
    new = copy.copy(node)
    for name, child in below:
        object.__setattr__(new, name, child)  # frozen ones as well
    return new
