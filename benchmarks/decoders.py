"""What a layer of a decoder in the manner of Llama keeps of each token: the constants of `decide/estimate.py`.

    python benchmarks/decoders.py

Counts the storages that torch saves for the backward pass, of models of one and of three layers and of several widths, with all
weights that learn and with adapters (what these keep at their rank left out), and fits a line through them. No time is
measured, so a busy machine does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memsup.shared.settings import Lora
from memsup.worker.compute.attention import attend_in_blocks
from memsup.worker.compute.dropout import draw_by_row
from memsup.worker.compute.frozen import round_frozen
from memsup.worker.compute.rounding import round_together
from memsup.worker.tasks.lora import Base, attach

TOKENS, HEADS, RANK = 199, 4, 3
WIDTHS = [(64, 128, 4), (64, 256, 4), (128, 128, 4), (128, 256, 2), (128, 512, 4)]
"""The hidden size, the feed-forward part's, and the heads of keys."""


def saved_bytes(hidden: int, intermediate: int, keys: int, layers: int, *, lower: bool, adapts: bool) -> int:
    """What is saved of a row of `TOKENS`; what has not a number for each token is a copy of a weight."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            num_key_value_heads=keys,
        )
    ).train()
    if adapts:
        attach(model, Lora(rank=RANK), "", Base(source="", files={}), 1)
    if adapts and lower:
        round_frozen(model, torch.bfloat16)
    if lower:
        round_together(model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        is_of_tokens = tensor.numel() % TOKENS == 0 and tensor.numel() != TOKENS * RANK
        if storage.data_ptr() not in weights and is_of_tokens:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower),
    ):
        model.model(input_ids=torch.randint(0, 64, (1, TOKENS)), use_cache=False)[0].sum()
    return sum(seen.values())


def main() -> None:
    draw_by_row()
    attend_in_blocks()
    print("mixed precision   learns     hidden   keys   intermediate   fixed   furthest off")
    for lower, adapts in ((False, False), (True, False), (False, True), (True, True)):
        a_layer = [
            (saved_bytes(*widths, 3, lower=lower, adapts=adapts) - saved_bytes(*widths, 1, lower=lower, adapts=adapts))
            / 2
            / TOKENS
            for widths in WIDTHS
        ]
        features = np.array([(hidden, hidden * keys / HEADS, intermediate, 1) for hidden, intermediate, keys in WIDTHS])
        found, *_ = np.linalg.lstsq(features, np.array(a_layer), rcond=None)
        off = np.abs(features @ found / a_layer - 1).max()
        numbers = "   ".join(f"{number:8.2f}" for number in found)
        print(f"{'bf16' if lower else 'off':15}   {'adapters' if adapts else 'all':8}   {numbers}   {off:.2%}")


if __name__ == "__main__":
    main()
