"""What a program predicts of a batch, in parts where that does not fit into memory, whose outputs are joined.

How outputs are joined is in `cut_outputs.py`; how numbers among them are weighted, the program is asked as for its losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from memsup import cut_generators
from memsup.cut_batch import Layouts, Rows
from memsup.cut_events import Event, RanOut
from memsup.cut_outputs import NotJoinableError, joined, numbers
from memsup.cut_plan import Planner
from memsup.cut_probe import Precision, look
from memsup.cut_weighting import Weighting
from memsup.memory import SoftLimit, explained, give_back, is_out_of_memory, is_permanent


class Prediction:
    """The predictions of one program."""

    def __init__(
        self,
        modules: list[Any],
        soft_limit: SoftLimit,
        device: str,
        *,
        fitted_tokens: int | None,
        in_powers: bool,
        boundary: Callable[[], None],
        tell: Callable[[Event], None],
    ) -> None:
        """As of the `Step` that it belongs to; `fitted_tokens` and `in_powers` are those of a `Planner`."""
        self._modules, self._soft_limit, self._device = modules, soft_limit, device
        self._boundary, self._tell = boundary, tell
        self._planner, self._layouts = Planner(fitted_tokens=fitted_tokens, in_powers=in_powers), Layouts()

    @property
    def most_tokens(self) -> int | None:
        """The bound of rows × padded length of a part. None means that there is none."""
        return self._planner.most_tokens

    def of(self, batch: Any, call: Callable[[Any], Any]) -> Any:
        """What `call` gives for a batch without gradients, in parts if need be, whose outputs are joined: tensors along their
        first dimension, filled up along the second with −100, numbers weighted. Raises what `call` raises; running out of
        memory only where nothing smaller is left, or where it is not certain how outputs are to be joined.
        """
        self._soft_limit.keep()
        found = self._layouts.find(batch)
        split = found if isinstance(found, Rows) else None  # outputs of a packed row lie behind one another in their second
        count = split.count if split is not None else 1
        if count == 0:
            return call(batch)
        outputs: list[Any] = []
        sizes: list[int] = []
        exhausted: Exception | None = None
        row = 0
        while row < count:
            rows = self._planner.rows(split, row) if split is not None else 1
            tokens, is_whole = (split.tokens(row, row + rows) if split is not None else 1), rows == count
            part = batch if is_whole or split is None else split.part(row, row + rows)
            generators = cut_generators.take()
            ran_out = None
            try:
                output = call(part)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                ran_out = RanOut("evaluate", self._device, tokens, None, str(error)[:2000])
                if split is None or rows < 2 or is_permanent(str(error)):
                    explained(error, "What is evaluated does not fit into memory, and cannot be made smaller.")
                    self._tell(ran_out)
                    raise
                exhausted = error.with_traceback(None)
            if ran_out is not None:
                give_back()
                self._soft_limit.renew()
                cut_generators.put_back(generators)
                self._tell(ran_out._replace(tokens_after=self._planner.out_of_memory(tokens)))
                continue
            if is_whole:
                self._planner.window_done()
                return output
            outputs.append(output)
            sizes.append(rows)
            row += rows
            if row < count:
                self._boundary()
        assert split is not None
        self._planner.window_done()
        return self._joined(split, call, outputs, sizes, exhausted)

    def _joined(
        self, split: Rows, call: Callable[[Any], Any], outputs: list[Any], sizes: list[int], exhausted: Exception | None
    ) -> Any:
        try:
            weights = self._weights(split, call, len(numbers(outputs[0])), sizes)
            return joined(outputs, sizes, weights)
        except NotJoinableError as error:
            if exhausted is None:
                raise
            explained(exhausted, f"What was computed in parts cannot be joined, since {error}.")
            raise exhausted from error

    def _weights(self, split: Rows, call: Callable[[Any], Any], count: int, sizes: list[int]) -> list[list[float]]:
        """For each of so many numbers among outputs the weights of parts of so many rows. Raises `NotJoinableError`."""
        if count == 0:
            return []
        precision, weights = Precision(), []
        try:
            with precision.of(self._modules):
                seen = look(split, lambda part: [precision.noted(number) for number in numbers(call(part))], self._modules)
        except Exception as error:
            raise NotJoinableError(f"some of its rows cannot be computed by themselves: {error}") from error
        for one in seen:
            weighting = Weighting()
            for observation in one:
                weighting.learn(observation, close=precision.close)
            shares = weighting.shares(split, at_best=True)
            if shares is not None:
                weights.append(_of_parts(shares, sizes))
        if len(weights) != count:
            raise NotJoinableError("it is not known how the numbers in them are weighted")
        return weights


def _of_parts(shares: list[float], sizes: Sequence[int]) -> list[float]:
    """The weights of parts of so many rows."""
    weights, begin = [], 0
    for rows in sizes:
        weights.append(sum(shares[begin : begin + rows]) if shares else 1.0)
        begin += rows
    return weights
