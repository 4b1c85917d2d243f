"""Whether a model is trained by adapters beside its weights (LoRA), and whether that can be done here."""

from __future__ import annotations

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.model.libraries import is_installed

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder one of adapters."""


def trains_adapters(kind: TaskKind, method: str | None) -> bool:
    """Whether adapters learn. Raises InputError where they cannot."""
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
    return True
