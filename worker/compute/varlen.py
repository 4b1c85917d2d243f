"""Attention on a GPU of rows that stand one behind the other: kernels that are told where each row begins.

torch has them for its nested tensors (torch/nested/_internal/sdpa.py); called by themselves they cost no nesting. In bfloat16
and float16 it is FlashAttention (Dao 2023), in float32 the memory-efficient one (Rabe & Staats 2021), with dropout by torch's
generator, as its attention on a GPU has it anyway. Exact but for rounding: no row sees another one, and padding is not there.

Which GPU has which of them is found out by asking (`can_attend`): where one is missing, or says something else than attention
row by row does, layers go on with padding. Not seen on a device yet.
"""

from __future__ import annotations

from typing import Any

import torch

FURTHEST_FRACTION = 0.05
"""The difference that counts as rounding in bfloat16, as a part of the largest number. Rows that see each other are ten times
further apart."""
_TRIED_LENGTHS = (37, 5, 64, 1)
_NO_MASK = 0


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    dropout: float,
    scale: float,
) -> torch.Tensor:
    """Attention of each row by itself. `query`, `key` and `value` have 1 x heads x tokens x width; `starts` are the places at
    which rows begin, and the end, as 32-bit numbers on the device. Returns 1 x tokens x heads x width. Raises RuntimeError
    where there is no kernel for it.
    """
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    places = (starts, starts, longest, longest, dropout)
    found: tuple[Any, ...]
    if query.dtype is torch.float32:
        one = (part.unsqueeze(0) for part in (query, key, value))
        found = torch.ops.aten._efficient_attention_forward(*one, None, *places, _NO_MASK, True, scale=scale)
        return found[0]  # type: ignore[no-any-return]
    found = torch.ops.aten._flash_attention_forward(query, key, value, *places, False, False, scale=scale)
    return found[0].unsqueeze(0)  # type: ignore[no-any-return]


def can_attend(device: torch.device, dtype: torch.dtype, *, heads: int, width: int) -> bool:
    """Whether `attend_rows` says on `device` what attention row by row says, and has the same gradient; asked with a few rows
    of random numbers. Where FlashAttention is switched off in torch, so that bits come out the same each time, it is not tried.
    """
    if not (torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()):
        return False
    try:
        return _says_the_same(device, dtype, heads, width)
    except RuntimeError:  # there is no such kernel
        return False


def _says_the_same(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> bool:
    shape, scale, longest = (4, 1, heads, sum(_TRIED_LENGTHS), width), width**-0.5, max(_TRIED_LENGTHS)
    numbers = torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(1)).to(dtype)
    starts = torch.tensor([0, *_TRIED_LENGTHS], device=device).cumsum(0).to(torch.int32)
    *parts, of_found = numbers.unbind()
    of_found = of_found.transpose(1, 2)
    asked = [part.clone().requires_grad_() for part in parts]
    said = attend_rows(*asked, starts, longest, dropout=0.0, scale=scale)
    of_asked = torch.autograd.grad(said, asked, of_found)
    torch.autograd.grad(attend_rows(*asked, starts, longest, dropout=0.1, scale=scale), asked, of_found)
    exact = [part.float().requires_grad_() for part in parts]
    rows = zip(*(part.split(_TRIED_LENGTHS, dim=2) for part in exact), strict=True)
    wanted = torch.cat([torch.nn.functional.scaled_dot_product_attention(*row) for row in rows], dim=2).transpose(1, 2)
    of_wanted = torch.autograd.grad(wanted, exact, of_found.float())
    pairs = zip((said, *of_asked), (wanted, *of_wanted), strict=True)
    return all(bool((one - other).abs().max() <= FURTHEST_FRACTION * other.abs().max()) for one, other in pairs)
