"""Dropout on a CPU by row and place, quicker than torch's, and without keeping what was drawn (Srivastava et al. 2014).

torch draws from one generator in the order in which units come, so that another cut of a step is another draw. Here each row
draws from a stream of its own (`randomness.py`), unit by unit from its first token on: neither neighbours nor padding change
what is dropped of it, and a step that is cut in any way learns the same but for rounding. What has no rows, such as a table of
positions, is dropped alike in every micro-batch of a step.

torch draws a number of 53 bits for each unit on one core, and keeps the outcome, as wide as the units themselves, for the
backward pass. Here 16 bits decide, and the backward pass draws them again (`benchmarks/attention.py` has the difference). A
probability is rounded to a multiple of 1/65,536, and what is kept is scaled by the rounded one, so that the expectation is
exact.

Covers `torch.nn.functional.dropout`, which `torch.nn.Dropout` calls as well, and the draws for `attention.py`. On a GPU, where
drawing costs nothing, for the kinds that drop whole channels and for what is done in place torch's way stays. Rows are the
first dimension of a tensor, or the second behind the tokens; where a model lays them out in another way, its draws depend on
the cut (`tasks/probe.py` finds that out).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memsup.worker.compute.randomness import Call, Rows, draws_nothing, next_call

_CHANCES = 1 << 16
_DROPPED = (1 << 15) - 1
_of_torch = torch.nn.functional.dropout

Bits = NDArray[np.int16]


class Draws:
    """Which units are kept in one call of dropout; drawn again, they are the same."""

    def __init__(self, call: Call, probability: float) -> None:
        """Begins the draws of `call`; `probability` is that of being dropped, see `can_draw`."""
        self._call, self._probability = call, probability
        kept = round((1 - probability) * _CHANCES)
        self.scale = _CHANCES / kept
        """How many times what is kept counts, in place of what is dropped."""
        self._last_kept = kept - 1 - _CHANCES // 2
        self._stream: np.random.SFC64 | None = None

    @classmethod
    def new(cls, probability: float) -> Draws:
        """The draws of the next call in this thread."""
        return cls(next_call(), probability)

    def again(self) -> Draws:
        """The same draws from the beginning."""
        return Draws(self._call, self._probability)

    def kept(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """1 for kept and 0 for dropped. They are no booleans, by which torch multiplies ten times as slowly."""
        rows = self._call.rows
        if rows is not None and rows.packed is not None:
            is_of_rows = shape[:2] == (1, sum(rows.lengths))
            bits = (self._of_tokens(rows, prod(shape[2:])) if is_of_rows else self._of_none(prod(shape))).reshape(shape)
        elif rows is None or len(rows.keys) not in shape[:2]:
            bits = self._of_none(prod(shape)).reshape(shape)
        elif shape[0] == len(rows.keys):
            bits = self._of_rows(rows, shape)
        elif len(shape) > 2 and shape[0] == rows.longest:
            bits = self._of_rows(rows, torch.Size([shape[1], shape[0], *shape[2:]])).swapaxes(0, 1)
        else:
            bits = self._of_none(prod(shape)).reshape(shape)
        return self._decided(bits, dtype)

    def kept_of_pairs(
        self, rows: slice, heads: slice, shape: torch.Size, dtype: torch.dtype, first_row: int = 0
    ) -> torch.Tensor:
        """As `kept`, for what tokens take of each other: (rows and heads) × length × length, some of the matrices that are
        rows × heads × length × … in `shape`. They are asked for in the order of rows and, within a row, of heads. Where rows
        are packed, `shape` is that of some of them, which begin at `first_row`.
        """
        known, (count, all_heads, length, *_) = self._call.rows, shape
        chosen, of_heads = range(first_row, first_row + count)[rows], range(all_heads)[heads]
        if known is not None and known.packed is not None:
            bits = self._of_pairs(known._replace(longest=length), chosen, of_heads)
        elif known is None or len(known.keys) != count or known.longest != length:
            bits = self._of_none(len(chosen) * len(of_heads) * length**2)
        else:
            bits = self._of_pairs(known, chosen, of_heads)
        return self._decided(bits.reshape(-1, length, length), dtype)

    def _of_none(self, count: int) -> Bits:
        """The next `count` numbers for what belongs to no row; what is left of the last word is dropped."""
        if self._stream is None:
            self._stream = self._call.stream(None)
        words: NDArray[np.uint64] = self._stream.random_raw(_words(count))
        return words.view(np.int16)[:count]

    def _of_tokens(self, rows: Rows, width: int) -> Bits:
        """What `_of_rows` draws for the rows' own tokens, one behind the other."""
        bits, end = np.empty(sum(rows.lengths) * width, np.int16), 0
        for row, length in enumerate(rows.lengths):
            begin, end = end, end + length * width
            bits[begin:end] = self._call.stream(row).random_raw(_words(length * width)).view(np.int16)[: length * width]
        return bits

    def _of_rows(self, rows: Rows, shape: torch.Size) -> Bits:
        if len(shape) == 4 and shape[2] == shape[3] == rows.longest:  # attention in a way of the model's own
            return self._of_pairs(rows, range(shape[0]), range(shape[1]))
        numbers = prod(shape[1:])
        words = np.empty((shape[0], _words(numbers)), np.uint64)
        for row in range(shape[0]):
            words[row] = self._call.stream(row).random_raw(words.shape[1])
        bits = words.view(np.int16)[:, :numbers].reshape(shape)
        if rows.is_left and len(shape) > 2 and shape[1] == rows.longest:
            for row, length in enumerate(rows.lengths):
                bits[row] = np.roll(bits[row], rows.longest - length, axis=0)
        return bits

    def _of_pairs(self, rows: Rows, chosen: range, heads: range) -> Bits:
        """Draws for each pair of a row's own tokens in each head, and drops what is padding: it counts for nothing anyway."""
        if all(rows.lengths[row] == rows.longest for row in chosen):
            words = np.empty((len(chosen), len(heads) * _words(rows.longest**2)), np.uint64)
            for place, row in enumerate(chosen):
                words[place] = self._stream_of(row, heads).random_raw(words.shape[1])
            return _pairs(words, len(chosen), len(heads), rows.longest)
        bits = np.full((len(chosen), len(heads), rows.longest, rows.longest), _DROPPED, np.int16)
        for place, row in enumerate(chosen):
            length = rows.lengths[row]
            own = slice(rows.longest - length, None) if rows.is_left else slice(length)
            words = self._stream_of(row, heads).random_raw(len(heads) * _words(length**2))
            bits[place, :, own, own] = _pairs(words, 1, len(heads), length)
        return bits

    def _stream_of(self, row: int, heads: range) -> np.random.SFC64:
        """The row's stream, at the first of `heads`: a row too large for a block goes on where its last heads ended."""
        if not heads.start or self._stream is None:
            self._stream = self._call.stream(row)
        return self._stream

    def _decided(self, bits: Bits, dtype: torch.dtype) -> torch.Tensor:
        return torch.le(torch.from_numpy(bits), self._last_kept, out=torch.empty(bits.shape, dtype=dtype))


def _words(count: int) -> int:
    """The words that hold so many numbers."""
    return (count + 3) // 4


def _pairs(words: NDArray[np.uint64], rows: int, heads: int, length: int) -> Bits:
    """The numbers as rows × heads × length × length. A head begins with a word of its own, wherever blocks end."""
    return words.view(np.int16).reshape(rows, heads, -1)[..., : length**2].reshape(rows, heads, length, length)


def can_draw(probability: float) -> bool:
    """Whether anything would be dropped, and anything kept."""
    return probability > 0.0 and round((1 - probability) * _CHANCES) > 0


def draw_by_row() -> None:
    """Has this process draw dropout by `Draws` from now on where it is computed on a CPU."""
    torch.nn.functional.dropout = _drop


def _drop(
    input: torch.Tensor,  # noqa: A002 - as torch names it
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> torch.Tensor:
    if training and draws_nothing():
        return input
    if not training or inplace or input.device.type != "cpu" or not can_draw(p):
        return _of_torch(input, p, training, inplace)
    dropped: torch.Tensor = _Drop.apply(input, p)
    return dropped


class _Drop(torch.autograd.Function):
    """Dropout whose backward pass draws again instead of having kept the outcome."""

    @staticmethod
    def forward(context: Any, units: torch.Tensor, probability: float) -> torch.Tensor:
        context.draws = Draws.new(probability)
        return _thinned(units, context.draws)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _thinned(gradients[0], context.draws.again()), None


def _thinned(units: torch.Tensor, draws: Draws) -> torch.Tensor:
    return draws.kept(units.shape, units.dtype).mul_(units).mul_(draws.scale)
