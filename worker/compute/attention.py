"""Attention with dropout on a CPU, in less time, and in memory that grows with the length instead of its square.

torch's fast way on a CPU knows no dropout. With it, torch computes whole matrices of rows x heads x length x length, in float32
whatever the inputs, and keeps some of them for the backward pass. Here such a matrix is computed block by block, small enough
for a cache, nothing of it is kept, and the backward pass computes each block again, as FlashAttention does (Dao et al. 2022).
The result is the same but for rounding; in bfloat16 scores are rounded to bfloat16, as in transformers' own "eager" way.
`benchmarks/attention.py` compares time, memory and error.

Without dropout torch's fast way stays, but for its backward pass in a lower precision on a CPU, which takes up to four times as
long as the one in float32 where rows are short (`benchmarks/attention.py --alone`): there, that one is taken.

Covers models that call attention by transformers' interface under the name "sdpa". On a GPU, and with biases that are learnt,
torch's way stays; on a GPU rows without padding (`packing.py`) have its kernels for those (`varlen.py`).

On a GPU transformers looks in each forward pass whether the mask hides anything, and waits for the device to know. The host
knows already: a mask that hides nothing is left out (`without_idle_mask`), and the others are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from memsup.worker.compute.dropout import Draws, can_draw
from memsup.worker.compute.randomness import Packed, draws_nothing, rows_of_pass
from memsup.worker.compute.spent import Part, spent_on
from memsup.worker.compute.varlen import attend_rows

BLOCK_NUMBERS = 1 << 20
"""How many numbers of a matrix are computed at a time: with 2 MiB in bfloat16 it is as fast as it gets where the second cache
has 1 MiB a core."""
WORTH_PAIRS = 1 << 13
"""How many pairs of tokens, for each head, may be computed for nothing so that rows are computed together."""
_HIDDEN = -30_000.0
"""The number that is added to a score that does not count: e to that is 0, and where no score counts all are alike, instead of
not a number."""
_ONLY_TORCHS = ("position_bias", "cache", "softcap")
LONGEST_WIDE = 512
"""The length up to which torch's backward pass in float32 is faster than the one in a lower precision."""
_FAST = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FAST_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_in_blocks() -> None:
    """Has this process compute attention in blocks from now on, and make masks without waiting for a device."""
    AttentionInterface.register("sdpa", _attend)
    AttentionMaskInterface.register("sdpa", _mask)
    masking_utils.find_packed_sequence_indices = _no_packed_sequences


def _no_packed_sequences(_positions: torch.Tensor) -> None:
    """Says that no row consists of several, which transformers would ask the numbers of positions on the device, and wait. Rows
    that stand one behind the other here (`packing.py`) need no mask.
    """


def in_blocks(device: torch.device) -> bool:
    """Whether attention is computed block by block there, and not by torch's own kernels."""
    return device.type == "cpu"


def without_idle_mask(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch, on the host, without a mask that hides nothing: models attend to all tokens without one."""
    mask = batch.get("attention_mask")
    if mask is None or not mask.all():
        return batch
    return {name: tensor for name, tensor in batch.items() if name != "attention_mask"}


def _mask(*arguments: Any, attention_mask: torch.Tensor | None = None, **more: Any) -> torch.Tensor | None:
    """Makes a mask as transformers' interface wants it. On a device, one that is there hides something."""
    if attention_mask is not None and attention_mask.device.type != "cpu":
        more |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    made: torch.Tensor | None = sdpa_mask(*arguments, attention_mask=attention_mask, **more)
    return made


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Computes attention as transformers' interface wants it. `query`, `key` and `value` have rows x heads x length x width;
    `attention_mask` has rows x (1 or heads) x length x length, True where it counts, or numbers that are added. Returns rows x
    length x heads x width, and no weights.
    """
    if draws_nothing():
        dropout = 0.0
    rows = rows_of_pass()
    if rows is not None and rows.packed is not None:
        if attention_mask is not None or query.shape[2] != sum(rows.lengths):
            raise ValueError("rows that are packed attend to their own tokens, and nothing else")
        is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return _attend_packed(rows.lengths, rows.packed, query, key, value, dropout, scaling, is_causal=is_causal), None
    groups = getattr(module, "num_key_value_groups", 1)
    is_plain = query.shape == (key.shape[0], groups * key.shape[1], *key.shape[2:]) and key.shape == value.shape
    is_plain = is_plain and all(more.get(name) is None for name in _ONLY_TORCHS)
    if attention_mask is not None:
        is_plain = is_plain and not attention_mask.requires_grad
    if not in_blocks(query.device) or not can_draw(dropout) or not is_plain:
        is_slow = in_blocks(query.device) and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
        if is_slow and is_plain and not dropout and query.shape[2] <= LONGEST_WIDE:
            lower = torch.get_autocast_dtype("cpu")
            is_causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
            parts = (part.to(lower) for part in (query, key, value))
            with torch.autocast("cpu", enabled=False):
                return _WideBackward.apply(*parts, attention_mask, is_causal, scaling, groups), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **more
        )
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        length = query.shape[2]
        attention_mask = torch.ones(length, length, dtype=torch.bool).tril()
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return _Attention.apply(query, key, value, attention_mask, scale, dropout), None


class _WideBackward(torch.autograd.Function):
    """torch's fast attention in a lower precision, whose backward pass computes in float32, from the same numbers."""

    @staticmethod
    @spent_on(Part.ATTENTION)
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scale: float | None,
        groups: int,
    ) -> torch.Tensor:
        bias = _added(mask, query.dtype)
        keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
        found, sums = _FAST(query, keys, values, 0.0, is_causal, attn_mask=bias, scale=scale)
        context.save_for_backward(query, key, value, found, sums, mask)
        context.how = is_causal, scale, groups
        return found.transpose(1, 2)

    @staticmethod
    @spent_on(Part.ATTENTION)
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, found, sums, mask = context.saved_tensors
        is_causal, scale, groups = context.how
        of_found = gradients[0].transpose(1, 2).float()
        wide = query.float(), repeat_kv(key.float(), groups), repeat_kv(value.float(), groups), found.float()
        bias = _added(mask, torch.float32)
        of_query, *others = _FAST_BACKWARD(of_found, *wide, sums, 0.0, is_causal, attn_mask=bias, scale=scale)
        of_key, of_value = (of_all.unflatten(1, (-1, groups)).sum(dim=2).to(key.dtype) for of_all in others)
        return of_query.to(query.dtype), of_key, of_value, None, None, None, None


def _added(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as numbers that are added to scores. None means that nothing is."""
    if mask is None or mask.is_floating_point():
        return None if mask is None else mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def _attend_packed(
    lengths: list[int],
    packed: Packed,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    *,
    is_causal: bool,
) -> torch.Tensor:
    """Attention of rows that stand one behind the other, each by itself. Raises ValueError where it would be another one."""
    device, scale = query.device.type, query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(device):
        query, key, value = (part.to(torch.get_autocast_dtype(device)) for part in (query, key, value))
    if not in_blocks(query.device):
        return attend_rows(query, key, value, packed.starts, max(lengths), dropout=dropout, scale=scale, is_causal=is_causal)
    if is_causal or query.shape != key.shape or key.shape != value.shape:
        raise ValueError("blocks of rows that are packed are those of encoders")
    with torch.autocast("cpu", enabled=False):
        found: torch.Tensor = _PackedAttention.apply(query, key, value, lengths, scale, dropout if can_draw(dropout) else 0.0)
        return found


class _PackedAttention(torch.autograd.Function):
    """As `_Attention`, of rows without padding. Rows of like length are padded to one another for it, a group at a time, since
    many small products take longer than a few that are a little too large.
    """

    @staticmethod
    @spent_on(Part.ATTENTION)
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: list[int],
        scale: float,
        probability: float,
    ) -> torch.Tensor:
        context.save_for_backward(query, key, value)
        context.scale, context.groups = scale, _groups(lengths)
        context.draws = Draws.new(probability) if probability else None
        draws = context.draws
        found = _like(query)
        for group in context.groups:
            query_of, key_of, value_of = (group.padded(part) for part in (query, key, value))
            bias, put = group.bias(query_of), _like(query_of)
            for block in _blocks(query_of.shape):
                queries, keys, values = (_matrices(part[block]) for part in (query_of, key_of, value_of))
                weights = _weights(queries * scale, keys, bias, block)
                if draws is not None:
                    weights.mul_(draws.kept_of_pairs(*block, query_of.shape, weights.dtype, group.first_row))
                _put(put[block], weights @ values, draws.scale if draws is not None else 1.0)
            group.put(found, put)
        return found.transpose(1, 2)

    @staticmethod
    @spent_on(Part.ATTENTION)
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        parts, of_found = context.saved_tensors, gradients[0].transpose(1, 2)
        scale, draws = context.scale, context.draws.again() if context.draws is not None else None
        found = [_like(part) for part in parts]
        for group in context.groups:
            query, key, value, of_sums_of = (group.padded(part) for part in (*parts, of_found))
            bias, (of_query, of_key, of_value) = group.bias(query), (_like(query) for _ in range(3))
            for block in _blocks(query.shape):
                queries, keys, values, of_sums = (_matrices(part[block]) for part in (query, key, value, of_sums_of))
                queries = queries * scale
                weights = _weights(queries, keys, bias, block)
                kept = None
                if draws is not None:
                    of_sums = of_sums * draws.scale
                    kept = draws.kept_of_pairs(*block, query.shape, weights.dtype, group.first_row)
                of_weights = of_sums @ values.transpose(1, 2)
                used = weights if kept is None else kept * weights
                if kept is not None:
                    of_weights.mul_(kept)
                _put(of_value[block], used.transpose(1, 2) @ of_sums)
                of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                _put(of_query[block], of_scores @ keys, scale)
                _put(of_key[block], of_scores.transpose(1, 2) @ queries)
            for whole, part in zip(found, (of_query, of_key, of_value), strict=True):
                group.put(whole, part)
        return *found, None, None, None


class _Group:
    """Some rows that stand one behind the other, and are padded to the longest of them for attention."""

    def __init__(self, first_row: int, first_token: int, lengths: list[int]) -> None:
        self.first_row, self._rows, self._longest = first_row, len(lengths), max(lengths)
        self._tokens = slice(first_token, first_token + sum(lengths))
        is_own = np.arange(self._longest) < np.array(lengths)[:, None]
        self._own = None if is_own.all() else torch.from_numpy(is_own)
        self._places = None if self._own is None else torch.from_numpy(np.flatnonzero(is_own))

    def padded(self, part: torch.Tensor) -> torch.Tensor:
        """Of 1 × heads × tokens × width the group's rows × heads × longest × width, zeros where they are padded."""
        tokens = part[0].transpose(0, 1)[self._tokens]
        if self._places is not None:
            tokens = tokens.new_zeros(self._rows * self._longest, *tokens.shape[1:]).index_copy_(0, self._places, tokens)
        return tokens.reshape(self._rows, self._longest, *tokens.shape[1:]).transpose(1, 2)

    def put(self, whole: torch.Tensor, rows: torch.Tensor) -> None:
        """Puts the rows' own tokens where they belong in `whole`, which is as `padded` takes it."""
        tokens = rows.transpose(1, 2).flatten(0, 1)
        whole[0].transpose(0, 1)[self._tokens] = tokens if self._places is None else tokens[self._places]

    def bias(self, query: torch.Tensor) -> torch.Tensor | None:
        """What is to be added to the scores of padding. None means that there is none."""
        return None if self._own is None else _bias(self._own[:, None, None, :], query)


def _groups(lengths: list[int]) -> list[_Group]:
    """The rows in groups, as long as little is padded."""
    groups, first, token = [], 0, 0
    for end in range(1, len(lengths) + 1):
        longest = max(lengths[first : end + 1])
        pairs = sum(longest**2 - length**2 for length in lengths[first : end + 1])
        if end == len(lengths) or pairs > WORTH_PAIRS:
            groups.append(_Group(first, token, lengths[first:end]))
            first, token = end, token + sum(lengths[first:end])
    return groups


class _Attention(torch.autograd.Function):
    """Attention with dropout, of which the backward pass computes each block anew."""

    @staticmethod
    @spent_on(Part.ATTENTION)
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        probability: float,
    ) -> torch.Tensor:
        context.save_for_backward(query, key, value, mask)
        context.scale, context.draws = scale, Draws.new(probability)
        bias, draws = _bias(mask, query), context.draws
        found = _like(query)
        for block in _blocks(query.shape):
            queries, keys, values = (_matrices(part[block]) for part in (query, key, value))
            weights = _weights(queries * scale, keys, bias, block)
            weights.mul_(draws.kept_of_pairs(*block, query.shape, weights.dtype))
            _put(found[block], weights @ values, draws.scale)
        return found.transpose(1, 2)

    @staticmethod
    @spent_on(Part.ATTENTION)
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask = context.saved_tensors
        scale, draws = context.scale, context.draws.again()
        bias, of_found = _bias(mask, query), gradients[0].transpose(1, 2)
        of_query, of_key, of_value = _like(query), _like(key), _like(value)
        for block in _blocks(query.shape):
            queries, keys, values, of_sums = (_matrices(part[block]) for part in (query, key, value, of_found))
            queries = queries * scale
            of_sums = of_sums * draws.scale
            weights = _weights(queries, keys, bias, block)
            kept = draws.kept_of_pairs(*block, query.shape, weights.dtype)
            of_weights = (of_sums @ values.transpose(1, 2)).mul_(kept)
            _put(of_value[block], kept.mul_(weights).transpose(1, 2) @ of_sums)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            _put(of_query[block], of_scores @ keys, scale)
            _put(of_key[block], of_scores.transpose(1, 2) @ queries)
        return of_query, of_key, of_value, None, None, None


Block = tuple[slice, slice]
"""The rows and the heads that are computed at a time."""


def _blocks(shape: torch.Size) -> Iterator[Block]:
    """The blocks that make up all rows and heads: some rows, or where one is too large, some of its heads at a time."""
    rows, heads, length, _ = shape
    heads_at_a_time = min(heads, max(1, BLOCK_NUMBERS // length**2))
    rows_at_a_time = max(1, BLOCK_NUMBERS // (heads * length**2))
    for row in range(0, rows, rows_at_a_time):
        for head in range(0, heads, heads_at_a_time):
            yield slice(row, row + rows_at_a_time), slice(head, head + heads_at_a_time)


def _bias(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """What is to be added to the scores, for every row and head. None means nothing."""
    if mask is None:
        return None
    bias = mask.to(query.dtype)
    if mask.dtype is torch.bool:
        bias = bias.sub_(1.0).mul_(-_HIDDEN)
    length = query.shape[2]
    return bias.clamp(min=_HIDDEN).expand(*query.shape[:2], length, length)


def _weights(queries: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor | None, block: Block) -> torch.Tensor:
    """What each token takes of each other: rows and heads x length x length."""
    scores = queries @ keys.transpose(1, 2)
    if bias is not None:
        scores.view(bias[block].shape).add_(bias[block])
    return torch.softmax(scores, dim=-1)


def _matrices(part: torch.Tensor) -> torch.Tensor:
    """A part with rows and heads as one dimension; copied only where there is more than one row."""
    return part.reshape(-1, *part.shape[2:])


def _like(part: torch.Tensor) -> torch.Tensor:
    """An empty tensor of rows x heads x length x width, with a token's heads side by side, as the layers before and after have
    them.
    """
    rows, heads, length, width = part.shape
    return torch.empty(rows, length, heads, width, dtype=part.dtype).transpose(1, 2)


def _put(where: torch.Tensor, matrices: torch.Tensor, factor: float = 1.0) -> None:
    torch.mul(matrices.view(where.shape), factor, out=where)
