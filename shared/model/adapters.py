"""Whether a model is trained by adapters beside its weights (LoRA), and whether that can be done here."""

from __future__ import annotations

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model.libraries import is_installed

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder one of adapters."""


def trains_adapters(kind: TaskKind, method: str | None, base_bits: int | None = None) -> bool:
    """Whether adapters learn, beside weights that are rounded to `base_bits`, if any. Raises InputError where they cannot."""
    if base_bits is not None and (kind != "causal-lm" or method == "full"):
        raise InputError(
            f"lora.base_bits = {base_bits} is for weights that are frozen, beside which adapters learn (task.kind = causal-lm, "
            "training.method = lora); here all weights learn: leave it away."
        )
    if kind != "causal-lm":
        if method == "lora":
            raise InputError(
                f"training.method = lora is for task.kind = causal-lm; of {kind} all weights learn: leave training.method away."
            )
        return False
    if method == "full":
        return False
    if not is_installed("peft"):
        raise InputError(
            "Training by adapters (LoRA) needs peft, which is not installed: pip install 'memsup[lora]'. To train all "
            "weights in its place, which takes several times the memory: --set training.method=full"
        )
    if base_bits is not None and not is_installed("bitsandbytes"):
        raise InputError(
            f"lora.base_bits = {base_bits} needs bitsandbytes, which is not installed: pip install 'memsup[quantized]', or "
            "leave it away, which takes more memory."
        )
    return True
