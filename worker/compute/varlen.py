"""Attention on a GPU of rows that stand one behind the other: kernels that are told where each row begins.

torch has them for its nested tensors (torch/nested/_internal/sdpa.py); called by themselves they cost no nesting. In bfloat16
and float16 it is FlashAttention (Dao 2023), in float32 the memory-efficient one (Rabe & Staats 2021), with dropout by torch's
generator, as its attention on a GPU has it anyway. Exact but for rounding: no row sees another one, and padding is not there.

Which GPU has which of them is found out by asking (`can_attend`): where one is missing, or says something else than attention
row by row does, layers go on with padding. Not seen on a device yet.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

FURTHEST_FRACTION = 0.05
"""The difference that counts as rounding in bfloat16, as a part of the largest number. Rows that see each other are ten times
further apart."""
_TRIED_LENGTHS = (37, 5, 64, 1)
_NO_MASK, _EARLIER_ALONE = 0, 1
"""Whether a token sees those behind it, as the memory-efficient kernels are told (CustomMaskType)."""


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    dropout: float,
    scale: float,
    is_causal: bool,
) -> torch.Tensor:
    """Attention of each row by itself. `query`, `key` and `value` have 1 x heads x tokens x width, of which the latter two may
    have fewer heads; `starts` are the places at which rows begin, and the end, as 32-bit numbers on the device; with
    `is_causal` a token sees none behind it. Returns 1 x tokens x heads x width. Raises RuntimeError where there is no kernel
    for it.
    """
    if query.dtype is torch.float32:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    places = (starts, starts, longest, longest, dropout)
    if query.dtype is torch.float32:
        one = (part.unsqueeze(0) for part in (query, key, value))
        seen = _EARLIER_ALONE if is_causal else _NO_MASK
        found: torch.Tensor = torch.ops.aten._efficient_attention_forward(*one, None, *places, seen, True, scale=scale)[0]
        return found
    found = torch.ops.aten._flash_attention_forward(query, key, value, *places, is_causal, False, scale=scale)[0]
    return found.unsqueeze(0)


class Heads(NamedTuple):
    """The heads of a model's attention."""

    queries: int
    keys: int
    width: int
    is_causal: bool


def can_attend(device: torch.device, dtype: torch.dtype, heads: Heads) -> bool:
    """Whether `attend_rows` says on `device` what attention row by row says, and has the same gradient; asked with a few rows
    of random numbers. Where FlashAttention is switched off in torch, so that bits come out the same each time, it is not tried.
    """
    if not (torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()):
        return False
    try:
        return _says_the_same(device, dtype, heads)
    except RuntimeError:  # there is no such kernel
        return False


def _says_the_same(device: torch.device, dtype: torch.dtype, heads: Heads) -> bool:
    draws = torch.Generator(device).manual_seed(1)
    *parts, of_found = (
        torch.randn((1, count, sum(_TRIED_LENGTHS), heads.width), device=device, generator=draws).to(dtype)
        for count in (heads.queries, heads.keys, heads.keys, heads.queries)
    )
    of_found = of_found.transpose(1, 2)
    starts = torch.tensor([0, *_TRIED_LENGTHS], device=device).cumsum(0).to(torch.int32)
    asked = [part.clone().requires_grad_() for part in parts]
    attended = partial(
        attend_rows,
        asked[0],
        asked[1],
        asked[2],
        starts,
        max(_TRIED_LENGTHS),
        scale=heads.width**-0.5,
        is_causal=heads.is_causal,
    )
    said = attended(dropout=0.0)
    of_asked = torch.autograd.grad(said, asked, of_found)
    torch.autograd.grad(attended(dropout=0.1), asked, of_found)
    exact = [part.float().requires_grad_() for part in parts]
    rows = zip(*(part.split(_TRIED_LENGTHS, dim=2) for part in exact), strict=True)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=heads.is_causal, enable_gqa=True)
    wanted = torch.cat([attend(*row) for row in rows], dim=2).transpose(1, 2)
    of_wanted = torch.autograd.grad(wanted, exact, of_found.float())
    pairs = zip((said, *of_asked), (wanted, *of_wanted), strict=True)
    return all(bool((one - other).abs().max() <= FURTHEST_FRACTION * other.abs().max()) for one, other in pairs)
