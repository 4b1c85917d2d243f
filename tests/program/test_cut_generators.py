"""What is remembered of the generators is what they have, whatever was drawn or set since, and so is what is put back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

from memsup import cut_generators, places


@pytest.fixture(autouse=True)
def as_they_were() -> Iterator[None]:
    before = cut_generators.take()
    yield
    cut_generators.put_back(before)


def _sets_half_a_pair() -> None:
    """Numbers as they were when they were seen last, and another half of a pair of normal ones."""
    numpy.random.randn()
    with_half = numpy.random.get_state()
    numpy.random.randn()
    cut_generators.take()
    cut_generators.put_back({"random": random.getstate(), "numpy": with_half})


WAYS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "random": random.random,
    "random.gauss": lambda: random.gauss(0, 1),
    "the other random.gauss": lambda: [random.gauss(0, 1), cut_generators.take(), random.gauss(0, 1)],
    "random.seed": lambda: random.seed(7),
    "random.setstate": lambda: random.setstate(random.Random(3).getstate()),
    "numpy.random": numpy.random.random,
    "numpy.random.randn": numpy.random.randn,
    "the other numpy.random.randn": lambda: [numpy.random.randn(), cut_generators.take(), numpy.random.randn()],
    "numpy.random.seed": lambda: numpy.random.seed(7),
    "half a pair is put back": _sets_half_a_pair,
    "another generator": lambda: numpy.random.set_bit_generator(numpy.random.PCG64(3)),
    "one with arrays": lambda: numpy.random.set_bit_generator(numpy.random.Philox(3)),
    "another of the same kind": lambda: numpy.random.set_bit_generator(numpy.random.MT19937(4)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_remembered_is_what_they_have(way: str) -> None:
    generator = numpy.random.get_bit_generator()
    try:
        cut_generators.take()
        WAYS[way]()
        for _ in range(2):
            taken = cut_generators.take()
            assert taken["random"] == random.getstate()
            is_twister = isinstance(taken["numpy"], tuple)
            now: Any = numpy.random.get_state() if is_twister else numpy.random.get_state(legacy=False)
            assert places.as_json(taken)["numpy"] == places.as_json({"numpy": now})["numpy"]
        kept = places.as_json(taken)
        drawn = [random.random(), random.gauss(0, 1), numpy.random.randn()]
        cut_generators.put_back(taken)
        assert [random.random(), random.gauss(0, 1), numpy.random.randn()] == drawn
        places.put_back(json.loads(json.dumps(kept)))
        assert cut_generators.take()["random"] == random.getstate()
        assert [random.random(), random.gauss(0, 1), numpy.random.randn()] == drawn
    finally:
        numpy.random.set_bit_generator(generator)
