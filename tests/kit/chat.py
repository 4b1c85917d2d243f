"""A chat model so small that a step takes milliseconds, made here with its tokenizer and template, and dialogues for it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from memsup.shared.loading import load
from memsup.shared.settings import Settings

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINGS = ["the moon", "a cat", "my bike", "green tea", "the sea", "an old map"]


def tiny_tokenizer(folder: Path, *, template: str | None = CHATML) -> Path:
    """A tokenizer of bytes, with a chat template, if any."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|end|>", additional_special_tokens=["<|im_start|>"]
    )
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def tiny_chat_model(folder: Path, *, template: str | None = CHATML, kind: str = "llama", **more: Any) -> Path:
    """A model with weights and such a tokenizer."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer(folder, template=template))
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if kind == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": tokenizer.eos_token_id}
    else:
        sizes |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
        }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = transformers.AutoConfig.for_model(kind, **sizes, **more)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def dialogues(rows: int) -> list[dict[str, Any]]:
    """Rows of messages of one to three questions, each with its answer."""
    draw = random.Random(3)
    found = []
    for number in range(rows):
        said = [{"role": "system", "content": "Be kind."}] if number % 3 == 0 else []
        for _ in range(draw.randint(1, 3)):
            thing = draw.choice(THINGS)
            said += [
                {"role": "user", "content": f"Tell me of {thing} {number}."},
                {"role": "assistant", "content": f"I like {thing}." * draw.randint(1, 2)},
            ]
        found.append({"messages": said})
    return found


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def tiny_chat(folder: Path, *, rows: list[dict[str, Any]] | None = None, model: Path | None = None, **values: Any) -> Settings:
    """Settings for a training of a few seconds; `values` override them, with `__` for the dot."""
    folder.mkdir(exist_ok=True)
    data = written(folder / "chat.jsonl", dialogues(40) if rows is None else rows)
    defaults = {
        "task.kind": "causal-lm",
        "task.model": str(model or tiny_chat_model(folder / "tiny-chat")),
        "task.train": str(data),
        "training.epochs": 1,
        "training.effective_batch": 8,
        "training.max_length": 160,
        "training.micro_tokens": 300,
        "training.learning_rate": 1e-2,
        "training.device": "cpu",
        "training.threads": 1,
        "training.amp": "off",
        "lora.rank": 4,
        "checkpoint.every": "1h",
    }
    chosen = defaults | {key.replace("__", "."): value for key, value in values.items()}
    return load(job_file=None, flags=[f"{key}={value}" for key, value in chosen.items()], environment={}).settings
