"""The generators of random numbers that a step draws from, remembered and put back: Python's, numpy's, torch's on
the CPU and on CUDA.

As objects, since a step remembers them each time; as JSON, for a checkpoint, they are in `places.py`. numpy and torch are asked
only where the program has imported them. Python's and numpy's states take fifty times as long to be asked for as a look at the
memory that holds their numbers: they are asked for only where that has changed.
"""

from __future__ import annotations

import ctypes
import random
import struct
import sys
from typing import Any, NamedTuple

Generators = dict[str, Any]
"""The state of each generator, by its name."""


def take() -> Generators:
    """The generators as they are now. Takes some microseconds, and waits for no device."""
    taken: Generators = {"random": _pythons()}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and hasattr(numpy, "random"):  # not where it is just being imported
        taken["numpy"] = _numpys(numpy.random)
    if torch is not None and hasattr(torch, "get_rng_state"):
        taken["torch"] = torch.get_rng_state()
        if torch.cuda.is_initialized():
            taken["cuda"] = torch.cuda.get_rng_state_all()
    return taken


def put_back(taken: Generators) -> None:
    """Has the generators go on as they were when they were taken."""
    random.setstate(taken["random"])
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and "numpy" in taken:
        numpy_was_set()
        numpy.random.set_state(taken["numpy"])
    if torch is not None and "torch" in taken:
        torch.set_rng_state(taken["torch"])
        if "cuda" in taken:
            torch.cuda.set_rng_state_all(taken["cuda"])


# --------------------------------------------------------------------------------------------------------------------
# Python's and numpy's


_BYTES = 625 * 4
"""What a Mersenne twister holds: 624 numbers, and which of them is next."""


class _Seen(NamedTuple):
    """A generator as it was seen last."""

    generator: Any
    memory: Any
    """Where its numbers lie."""
    content: bytes
    state: Any


_python: _Seen | None = None
_numpy: _Seen | None = None
"""Each is None where its state has to be asked for."""


def _pythons() -> Any:
    global _python
    seen = _python
    if seen is not None and seen.memory.raw == seen.content and seen.generator.gauss_next == seen.state[2]:
        return seen.state
    state = random.getstate()
    _python = _pythons_as_it_lies(state) if seen is None else seen._replace(content=seen.memory.raw, state=state)
    return state


def _pythons_as_it_lies(state: Any) -> _Seen | None:
    """Python's generator, which has its numbers behind what each object begins with. It is None where they are not there."""
    generator = getattr(random.getstate, "__self__", None)
    begins, kind = object.__basicsize__, random.Random.__base__
    is_one = type(generator) is random.Random and sys.implementation.name == "cpython"
    if not is_one or kind is None or begins + _BYTES > kind.__basicsize__:
        return None
    memory = (ctypes.c_char * _BYTES).from_address(id(generator) + begins)
    is_there = struct.unpack("625I", memory.raw) == (state[1][-1], *state[1][:-1])
    return _Seen(generator, memory, memory.raw, state) if is_there else None


def _numpys(its: Any) -> Any:
    """The state of the generator of `numpy.random`."""
    global _numpy
    seen = _numpy
    if seen is not None and its.get_bit_generator() is seen.generator and seen.memory.raw == seen.content:
        return seen.state
    _numpy = None
    generator = its.get_bit_generator() if hasattr(its, "get_bit_generator") else None  # numpy 1.24 and newer
    if generator is None:
        return its.get_state()
    if type(generator).__name__ != "MT19937":
        return its.get_state(legacy=False)
    state = its.get_state()
    if not state[3]:
        memory = (ctypes.c_char * _BYTES).from_address(generator.ctypes.state_address)
        _numpy = _Seen(generator, memory, memory.raw, state)
    return state


def numpy_was_set() -> None:
    """Has numpy's state be asked for next time. It has half a pair of normal numbers besides (`state[3]`), which lies
    elsewhere: to draw one changes the numbers as well, to set the state need not.
    """
    global _numpy
    _numpy = None
