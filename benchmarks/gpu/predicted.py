"""What trains on cards of 4 to 24 GiB, predicted from the models' numbers alone: the table of docs/gpu.md.

    python benchmarks/gpu/predicted.py

What is held all the time, and where the optimizer's moments lie, is what `memsup start` says and does itself
(`supervisor/decide/tiers.py`, `estimate.py`). What a row's activations take is that estimate for a CPU: attention keeps no
matrices on either. Nothing of it was measured on a card. The card has nobody else on it and computes bfloat16 itself;
`parts/small_cards.py` measures the same cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memsup.shared.settings import Settings, SettingsError
from memsup.supervisor.decide.estimate import SCORES, Shape, decoder_shape_of, device_bytes, held_bytes, peak_bytes, shape_of
from memsup.supervisor.decide.readings import GpuReading, Machine
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.decide.vram import CONTEXT_BYTES

GIB, MIB = 1 << 30, 1 << 20
CARDS_GIB = (4, 6, 8, 12, 24)
RAM_GIB = 32
LENGTH, RANK, LABELS = 512, 16, 2
PLANNED_FRACTION = 0.84
"""The part of its limit for which the worker plans micro-batches (`worker/train.py`)."""
MOST_ROWS = 512
PIECE_OF_DEVICE, BYTES_OF_SCORE = 512, 10
"""Of how many bytes of the limit a score is computed at a time (`worker/compute/token_loss.py`), and what it takes."""


def _encoder(**more: int) -> dict[str, Any]:
    return {"model_type": "bert", "max_position_embeddings": 512, "type_vocab_size": 2} | more


def _decoder(**more: int) -> dict[str, Any]:
    return {"model_type": "llama", "vocab_size": 151936, "max_position_embeddings": 2048, "tie_word_embeddings": True} | more


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "base": (
        "BERT-base",
        _encoder(vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    ),
    "large": (
        "roberta-large",
        _encoder(vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    ),
    "lora05": (
        "0.5B, LoRA",
        _decoder(hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, intermediate_size=4864),
    ),
    "lora15": (
        "1.5B, LoRA",
        _decoder(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960),
    ),
    "lora3": (
        "3B, LoRA",
        _decoder(
            hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008
        ),
    ),
}
"""The sizes of bert-base-uncased, roberta-large, and Qwen2.5's of 0.5, 1.5 and 3 billion weights."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What is to be expected of a model on a card."""

    fits: bool
    why_not: str = ""
    held_bytes: int = 0
    """All the time: weights, gradients, moments, and CUDA's context."""
    on_host: bool = False
    """The optimizer's moments lie in host memory."""
    rows: int = 0
    """Of `LENGTH` tokens, at once."""
    twice: bool = False
    """Activations are computed twice."""

    @property
    def cell(self) -> str:
        """For the table."""
        if not self.fits:
            return "no"
        return f"{self.rows}{' twice' if self.twice else ''}{' *' if self.on_host else ''}"


def shape(model: str) -> Shape:
    config = MODELS[model][1]
    if not is_decoder(model):
        found = shape_of(config, None, LABELS)
    else:
        found = decoder_shape_of(config, decoder_weights(config), rank=RANK)
    assert found is not None
    return found


def is_decoder(model: str) -> bool:
    return MODELS[model][1]["model_type"] == "llama"


def decoder_weights(config: dict[str, Any]) -> int:
    """With one table of tokens for both ends."""
    hidden, layers, inner = (config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    return int(
        config["vocab_size"] * hidden + layers * (2 * hidden * (hidden + keys) + 3 * hidden * inner + 2 * hidden) + hidden
    )


def flop_of_row(model: str, length: int = LENGTH) -> float:
    """Forward and backward, of a row without padding: two for each weight of a layer and token in each direction that has to be
    computed, of which frozen weights need two and others three, and twelve for each pair of tokens (Kaplan et al. 2020).
    """
    found = shape(model)
    weights = found.parameters - found.embeddings
    of_weights = (4 if is_decoder(model) else 6) * weights + 6 * (found.trained or 0) * is_decoder(model)
    head = 4 * found.embeddings if is_decoder(model) else 0
    return float((of_weights + head) * length + 12 * found.layers * found.hidden * length**2)


def predicted(model: str, gib: int) -> Predicted:
    """Of a card with so much memory, in a machine that has enough RAM."""
    found, settings = shape(model), Settings()
    card = GpuReading(at_s=0.0, index=0, name=f"a card of {gib} GB", total_bytes=gib * GIB, bf16=True)
    machine = Machine(ram_total_bytes=RAM_GIB * GIB, ram_available_bytes=RAM_GIB * GIB, cpus=8, gpus=(card,))
    try:
        resolved = resolve(settings, {}, machine, found)
    except SettingsError as error:
        return Predicted(fits=False, why_not=str(error))
    amp, on_host = resolved.settings.training.amp or "off", bool(resolved.settings.training.optimizer_on_host)
    limit = resolved.limits.vram_bytes or 0
    held = device_bytes(found, amp=amp, optimizer_on_host=on_host)
    if is_decoder(model):  # a piece of the scores is larger than on a CPU
        held += BYTES_OF_SCORE * max(0, limit // PIECE_OF_DEVICE - SCORES)
    for fraction in (PLANNED_FRACTION, 1.0):  # what one row takes is tried all the same
        room = fraction * (limit - CONTEXT_BYTES) - held
        for twice in (False, True):
            rows = 0
            while rows < (MOST_ROWS if fraction < 1.0 else 1) and _activations(found, amp, rows + 1, twice=twice) <= room:
                rows += 1
            if rows:
                return Predicted(fits=True, held_bytes=held + CONTEXT_BYTES, on_host=on_host, rows=rows, twice=twice)
    return Predicted(fits=False, why_not=f"a row of {LENGTH} tokens has no room beside {held / GIB:.1f} GiB")


def _activations(found: Shape, amp: str, rows: int, *, twice: bool) -> int:
    return peak_bytes(found, amp=amp, rows=rows, length=LENGTH, checkpointing=twice) - held_bytes(found, amp=amp)


def main() -> None:
    print("| | TFLOP a row | " + " | ".join(f"{gib} GB" for gib in CARDS_GIB) + " |")
    print("|---|---|" + "---|" * len(CARDS_GIB))
    for model, (name, _) in MODELS.items():
        cells = " | ".join(predicted(model, gib).cell for gib in CARDS_GIB)
        print(f"| {name} ({shape(model).parameters / 1e6:,.0f} M) | {flop_of_row(model) / 1e12:.2g} | {cells} |")


if __name__ == "__main__":
    main()
