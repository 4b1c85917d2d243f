"""A language model answers: word by word the likeliest one, so that the same question has the same answer each time.

Covers the few examples that a run shows of its model before and after (`Samples`), and a finished model that is asked
(`load_answering`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import torch
import transformers

from memsup.shared.answers import ANSWERS_FILE, Answered, read_answers
from memsup.shared.data.chat import Form
from memsup.shared.files import replace_file
from memsup.shared.model.adapters import ADAPTER_CONFIG, trains_adapters
from memsup.shared.model.folder import ModelSource
from memsup.worker.compute.four_bits import round_to_four_bits
from memsup.worker.tasks.dialogues import alpaca, template_of
from memsup.worker.tasks.lora import base_of, merged, read_base, refuse_other_base
from memsup.worker.tasks.pretrained import load_config, load_model, load_tokenizer, quiet_libraries
from memsup.worker.tasks.sequences import NOTHING, SequenceRows

SHOWN, SHOWN_TOKENS, SHOWN_CHARS = 3, 48, 1000
MOST_TOKENS = 512
"""At most this many are answered to whoever asks a finished model."""
_LOOKED_AT_ROWS = 100
_PLACE = "?\ue000?"
"""What stands where a question would, in a prompt; no person asks it."""
_TEXT_TOKENS = 32
"""Of plain text so many tokens are what is asked."""


def answer(model: Any, prompt: list[int], ends: frozenset[int], most_tokens: int, boundary: Callable[[], None]) -> list[int]:
    """The tokens that the model says behind `prompt`, up to one that ends an answer; at most so many, and no more than it has
    places for. `boundary` is called before each.
    """
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or len(prompt) + most_tokens
    said: list[int] = []
    tokens, kept = torch.tensor([prompt], device=model.device), None
    with torch.no_grad():
        while len(said) < min(most_tokens, places - len(prompt)):
            boundary()
            found = model(input_ids=tokens, past_key_values=kept, use_cache=True, logits_to_keep=1)
            kept = found.past_key_values
            likeliest = int(found.logits[0, -1].argmax())
            if likeliest in ends:
                break
            said.append(likeliest)
            tokens = torch.tensor([[likeliest]], device=model.device)
    return said


def ends_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return frozenset(
        token for token in [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])] if token is not None
    )


class Samples:
    """A few rows that are not trained on, with what the model answers before and after."""

    def __init__(self, rows: SequenceRows, tokenizer: Any, state: Path) -> None:
        self._rows, self._tokenizer, self._state = rows, tokenizer, state

    def _examples(self) -> list[tuple[list[int], list[int]]]:
        """What is asked, and what it wants to hear: the first few rows that ask different things."""
        found: dict[tuple[int, ...], list[int]] = {}
        for row in range(min(_LOOKED_AT_ROWS, len(self._rows))):
            prompt, wanted = _asked(self._rows, row)
            found.setdefault(tuple(prompt), wanted)
            if len(found) == SHOWN:
                break
        return [(list(prompt), wanted) for prompt, wanted in found.items()]

    def take(self, model: Any, moment: Literal["before", "after"], boundary: Callable[[], None]) -> None:
        """Asks the model, and writes down what it says. Raises OSError, and what `boundary` raises."""
        if moment == "before" and read_answers(self._state):
            return  # a life before this one has asked the same model
        model.eval()
        known = {} if moment == "before" else {(seen.asked, seen.wanted): seen for seen in read_answers(self._state)}
        found = []
        for prompt, wanted in self._examples():
            said = answer(model, prompt, ends_of(model, self._tokenizer), SHOWN_TOKENS, boundary)
            text, meant = (self._tokenizer.decode(part, skip_special_tokens=True) for part in (said, wanted))
            asked = _without_template(self._tokenizer.decode(prompt), self._tokenizer) or self._tokenizer.decode(
                prompt, skip_special_tokens=True
            )
            before = known.get((asked[-SHOWN_CHARS:], meant[:SHOWN_CHARS]))
            found.append(
                Answered(
                    asked=asked[-SHOWN_CHARS:],
                    wanted=meant[:SHOWN_CHARS],
                    before=text[:SHOWN_CHARS] if moment == "before" else before.before if before else None,
                    after=text[:SHOWN_CHARS] if moment == "after" else None,
                )
            )
        replace_file(self._state / ANSWERS_FILE, msgspec.json.encode(found))


def _without_template(prompt: str, tokenizer: Any) -> str | None:
    """What a person asks in a prompt that the chat template has made of a single message. It is None for any other."""
    if template_of(tokenizer) is None:
        return None
    try:
        around = str(
            tokenizer.apply_chat_template([{"role": "user", "content": _PLACE}], tokenize=False, add_generation_prompt=True)
        )
    except Exception:  # whatever a stranger's template raises
        return None
    before, _, after = around.partition(_PLACE)
    asked = prompt.removeprefix(before).removesuffix(after)
    is_alone = len(before) + len(asked) + len(after) == len(prompt) and not any(
        map(asked.__contains__, tokenizer.get_added_vocab())
    )
    return asked if is_alone else None


def _asked(rows: SequenceRows, row: int) -> tuple[list[int], list[int]]:
    """What a row asks, which are its tokens up to the first answer, and what it wants to hear."""
    tokens, marks = rows.row(row)
    learnt = np.flatnonzero(marks != NOTHING)
    first = int(learnt[0])
    if first <= 1:  # plain text
        first = min(_TEXT_TOKENS, len(tokens) - 1)
    ends = next((int(place) for place in range(first, len(tokens)) if marks[place] == NOTHING), len(tokens))
    return tokens[:first].tolist(), tokens[first : min(ends, first + SHOWN_TOKENS)].tolist()


class Answering(NamedTuple):
    """A finished model that can be asked."""

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    """The type that its weights came in."""

    def ask(self, text: str, form: Form) -> str:
        """What it answers to a question."""
        if template_of(self.tokenizer) is not None and form is not Form.TEXT:
            turns = [{"role": "user", "content": text}]
            written = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            prompt = self.tokenizer(written, add_special_tokens=False)["input_ids"]
        else:
            prompt = self.tokenizer(alpaca(text) if form is Form.INSTRUCTION else text)["input_ids"]
            if prompt[-1:] == [self.tokenizer.eos_token_id]:
                prompt = prompt[:-1]
        said = answer(self.model, prompt, ends_of(self.model, self.tokenizer), MOST_TOKENS, lambda: None)
        return str(self.tokenizer.decode(said, skip_special_tokens=True))


def load_answering(folder: str) -> Answering:
    """The model that a run has made, in float32; adapters are put into the weights that they belong to. Raises InputError."""
    quiet_libraries()
    place = Path(folder)
    adapts = (place / ADAPTER_CONFIG).exists()
    base = read_base(place) if adapts else None
    origin = folder if base is None else base.source
    tokenizer = load_tokenizer(folder)
    config = load_config(origin)
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    model, _ = load_model(transformers.AutoModelForCausalLM, origin, ModelSource.FOLDER, config, tokenizer, seed=0)
    if base is not None:
        refuse_other_base(base_of(origin, lambda: None, base.bits), place)
        if base.bits is not None:
            trains_adapters("causal-lm", "lora", base.bits)  # refuses without the library
            round_to_four_bits(model)  # beside these they have learnt
        model = merged(model, folder)
    return Answering(model.eval(), tokenizer, dtype)
