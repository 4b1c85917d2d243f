"""Rows of unequal length in one matrix product: a model's layers see the tokens of all rows of a micro-batch, and no padding.

Rows that are computed together are padded to the longest of them, and layers compute padding like any token. Cutting a step
into many micro-batches saves padding, but each starts a thousand operations and adds to all gradients. Here the tokens of all
rows stand one behind the other, as one long row, from the embeddings to the last layer; attention takes each row by itself
(`attention.py`), dropout draws for each row as ever (`dropout.py`), and behind the last layer rows are padded again, for
whatever head there is. The gradient is the same but for rounding (`benchmarks/packing.py` has the difference in time).

Covers models that take the numbers of positions, keep their layers in one stack, and call attention by transformers' interface
(BERT, RoBERTa, ELECTRA and their like); on a GPU also decoders whose tokens see all before them (Llama, Qwen and their like).
Whether one is of that kind is found out by asking it (`pack`), and on a GPU whether that has the kernels (`varlen.py`).
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from memsup.worker.compute import attention, randomness
from memsup.worker.compute.randomness import nothing_drawn, seed_stream
from memsup.worker.compute.varlen import Heads, can_attend
from memsup.worker.memory import sent

SAME_FRACTION, SAME_ROUNDED = 1e-4, 0.03
"""The difference that counts as rounding, as a part of the largest number; and as a part of all where frozen weights are
rounded, so that the model cannot be asked in float32."""
_TRIED_LENGTHS = (7, 3, 5)


def pack(model: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Has `model`, which computes in `dtype`, compute its layers without padding in training from now on; returns whether it
    can. Otherwise it stays as it is.
    """
    base, offset = model.base_model, _first_position(model)
    stack = _stack_of(base)
    if stack is None or "position_ids" not in inspect.signature(base.forward).parameters or not _has_kernels(base, dtype):
        return False
    base.first_position = offset
    hooks = [
        base.register_forward_pre_hook(_pack, with_kwargs=True),
        stack.register_forward_hook(_unpack),
    ]
    try:
        works = _says_the_same(model, dtype)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # its layers know rows
        works = False
    if not works:
        for hook in hooks:
            hook.remove()
    return works


def _stack_of(base: Any) -> torch.nn.Module | None:
    """The part of the model that has all of its layers, and nothing else; of a decoder all of it. None means that there is
    none.
    """
    config = base.config
    count = getattr(config, "num_hidden_layers", None)
    if getattr(config, "is_encoder_decoder", False):
        return None
    for part, children in ((base, base.children()), *((child, child.children()) for child in base.children())):
        stacks = [one for one in children if isinstance(one, torch.nn.ModuleList) and len(one) == count]
        if part is base and stacks and not attention.in_blocks(base.device) and _sees_all_before(config):
            found: torch.nn.Module = base
            return found
        if part is not base and len(stacks) == len(list(part.children())) == 1 and not getattr(config, "is_decoder", False):
            return part
    return None


def _sees_all_before(config: Any) -> bool:
    """Whether each token of a decoder sees all before it, and not those in a window alone."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds == {"full_attention"} and not getattr(config, "sliding_window", None)


def _has_kernels(base: Any, dtype: torch.dtype) -> bool:
    """Whether what computes has attention for such rows, in `dtype`, and in float32, in which the model is asked."""
    if attention.in_blocks(base.device):
        return True
    config = base.config
    queries, hidden = (getattr(config, name, 0) for name in ("num_attention_heads", "hidden_size"))
    if not queries or not hidden:
        return False
    keys, width = (getattr(config, name, None) for name in ("num_key_value_heads", "head_dim"))
    is_causal = any(getattr(module, "is_causal", False) for module in base.modules())
    heads = Heads(queries, keys or queries, width or hidden // queries, is_causal)
    return all(can_attend(base.device, one, heads) for one in {torch.float32, dtype})


def _first_position(model: Any) -> int:
    """The number of the first position: a table with a place for padding has it behind that."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _says_the_same(model: Any, dtype: torch.dtype) -> bool:
    """Whether the layers say the same of rows with padding and without."""
    base, lengths = model.base_model, np.array(_TRIED_LENGTHS)
    was_training = model.training
    ids = torch.arange(3, 3 + len(lengths) * int(lengths.max())).reshape(len(lengths), -1) % model.config.vocab_size
    mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None])
    mask = mask.to(base.device)
    batch = {"input_ids": ids.to(base.device), "attention_mask": mask.long()}
    is_rounded = any(parameter.dtype is not torch.float32 for parameter in base.parameters())
    model.eval()  # what counts how often it was trained does not count this
    try:
        with nothing_drawn(), torch.autocast(base.device.type, dtype=dtype, enabled=is_rounded):
            seed_stream(0, 0)
            padded = base(**batch)[0].detach()
            seed_stream(0, 0, range(len(lengths)), lengths.tolist(), packs=True)
            packed = base(**batch)[0].detach()
    finally:
        seed_stream(0, 0)
        model.train(was_training)
    if padded.shape != packed.shape:
        return False
    padded, apart = padded[mask].float(), (padded - packed)[mask].float()
    if is_rounded:
        return bool(apart.norm() <= SAME_ROUNDED * padded.norm())
    return bool(apart.abs().max() <= SAME_FRACTION * padded.abs().max())


def _pack(base: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Puts the tokens of all rows one behind the other, and leaves the mask out, before the model sees them."""
    rows, ids = randomness.rows_of_pass(), arguments[0] if arguments else named.get("input_ids")
    if rows is None or not rows.packs or not torch.is_grad_enabled() or ids is None:
        return None
    if ids.shape != (len(rows.lengths), rows.longest) or len(rows.lengths) == 1 or named.get("position_ids") is not None:
        return None
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in rows.lengths])) + base.first_position
    where = _where(rows, ids.device)

    def packed(value: Any) -> Any:
        is_of_tokens = isinstance(value, torch.Tensor) and value.shape[:2] == ids.shape
        return value.flatten(0, 1)[where.places].unsqueeze(0) if is_of_tokens else value

    named = {name: packed(value) for name, value in named.items() if name != "attention_mask"}
    randomness.pack_rows(where)
    return tuple(map(packed, arguments[:1])), named | {"position_ids": sent(positions, ids.device).unsqueeze(0)}


def _unpack(_stack: Any, _arguments: tuple[Any, ...], output: Any) -> Any:
    """Pads what the last layer gives again."""
    rows = randomness.rows_of_pass()
    if rows is None or rows.packed is None:
        return output
    randomness.pack_rows(None)
    last = output[0].squeeze(0)
    padded = last.new_zeros(len(rows.lengths) * rows.longest, last.shape[-1]).index_copy(0, rows.packed.places, last)
    output.last_hidden_state = padded.view(len(rows.lengths), rows.longest, -1)
    return output


def _where(rows: randomness.Rows, device: torch.device) -> randomness.Packed:
    places = np.flatnonzero(np.arange(rows.longest) < np.array(rows.lengths)[:, None])
    starts = np.concatenate(([0], np.cumsum(rows.lengths))).astype(np.int32)
    return randomness.Packed(sent(torch.from_numpy(places), device), sent(torch.from_numpy(starts), device))
