"""What training a model will take of memory, told before anything is loaded, from its folder's numbers. Pure.

Covers encoders in the manner of BERT, and decoders in that of Llama by adapters as well, trained on a CPU: weights, gradients,
optimizer, and the activations of a micro-batch with and without activation checkpointing. On a GPU only what is held all the
time is told: nothing was measured there. A model of another build, or one that is still at a hub, is not known (None). The
worker's planner learns the truth as it goes; this is for the first word, and for refusing what cannot fit.

The constants were fitted by `benchmarks/estimate.py --fit`, which also shows how far the estimate is off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from memsup.shared.lanes import BASE_BYTES, BYTES_PER_PARAMETER, FROZEN_BYTES, ROUNDED_BYTES, lane_bytes, weights_bytes

MIB = 2**20
GATHERED_BYTES = 16
"""What a weight takes in a rank while it is gathered: itself and what was sent, its gradient and what is added up of it."""
MOMENTS_BYTES = 8
"""What Adam's two moments take of the bytes of each parameter."""
ENCODER_BASE_BYTES = 300 * MIB
"""What a process holds that trains an encoder, in place of `BASE_BYTES`, as whole runs of 2 x 128 showed: it has no template of
dialogues and makes no answers (15 MiB, counted in one process), and makes no scores of a vocabulary, which leave holes."""
KEPT_BYTES = 75 * MIB
"""What libraries and the allocator keep of each new shape, two thirds of it within the first ten steps and all of it within
some hundred: code that was generated, small holes."""
ENCODER_HOLES_FRACTION, DECODER_HOLES_FRACTION = 0.4, 0.8
"""What lies idle between what is used, as a part of what micro-batches take: memory that earlier ones had, in pieces that later
ones do not fill. The C library's own count has it (mallinfo2(3)): of a language model of 12 x 768 with adapters 0.7 to 0.8. Of
encoders it is what whole runs held beyond what they use."""
BLOCK_NUMBERS = 1 << 20
"""The worker (`compute/attention.py`) computes so many numbers of attention's matrices at a time, or one head's if that has
more."""
LENGTH_STEP = 32
BLOCK_WEIGHTS, BLOCK_BYTES = 64, 4
"""Of weights in four bits so many share a number of so many bytes (`worker/compute/four_bits.py`)."""
MOST_NUMBER = 1 << 40
"""A config's number counts as this at most. No machine has room for such a model, and what is computed of it stays finite."""


class Constants(NamedTuple):
    """The bytes that activations take, which are kept for the backward pass unless something else is said."""

    hidden: float
    """Bytes for each token, layer and unit of the hidden size."""
    intermediate: float
    """Bytes for each token, layer and unit of the feed-forward part, before and after its activation function."""
    attention: float
    """Bytes for each head and pair of tokens of a block, which are not kept but needed one block at a time."""
    copies: int
    """Bytes for each weight outside of the embeddings: its copy in the lower precision."""


CONSTANTS = {
    "off": Constants(hidden=49.9, intermediate=8, attention=27.7, copies=0),
    "bf16": Constants(hidden=37.8, intermediate=4, attention=11.4, copies=2),
}
CONSTANTS["fp16"] = CONSTANTS["bf16"]


class DecoderConstants(NamedTuple):
    """The bytes that a layer of a decoder keeps for each token, counted by looking at what torch saves
    (`benchmarks/decoders.py`).
    """

    hidden: float
    """For each unit of the hidden size."""
    norms: float
    """For each unit of the hidden size where the weights of normalisation learn."""
    key_values: float
    """For each unit of keys, or of values."""
    intermediate: float
    """For each unit of the feed-forward part, of which there are two, their product and the activation between."""


DECODERS = {
    "off": DecoderConstants(hidden=24, norms=8, key_values=8, intermediate=16),
    "bf16": DecoderConstants(hidden=16, norms=8, key_values=4, intermediate=8),
}
DECODERS["fp16"] = DECODERS["bf16"]
SCORES = 1 << 22
"""How many scores of tokens for words are computed at a time, in each lane (`worker/compute/token_loss.py`)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's numbers, as its config tells them."""

    parameters: int
    embeddings: int
    """How many of the parameters are in the table of tokens."""
    layers: int
    hidden: int
    heads: int
    intermediate: int
    positions: int | None
    """The longest text that it can take, in tokens. It is None where the config does not tell."""
    is_decoder: bool = False
    key_values: int = 0
    """The units of a decoder's keys, which may be fewer than the hidden size."""
    trained: int | None = None
    """How many parameters are trained. None means that all are."""
    is_tied: bool = False
    """Whether a decoder's last layer is its table of tokens."""
    base_bits: int | None = None
    """In how many bits the frozen weights of a decoder's linear layers are held. None means in those that are computed with."""
    stored: str | None = None
    """The mixed precision, as `training.amp` names it, in which all weights of a decoder came. None means that it is none."""
    shared_by: int = 1
    """How many ranks share the weights, so that this is what one of them has (`worker/ranks/sharded.py`)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the worker takes at its peak."""

    shape: Shape
    held_bytes: int
    """What is held all the time: the base, weights, gradients and optimizer."""
    length: int
    """Tokens of the longest text, for which the other figures are."""
    rows: int
    """Rows of the micro-batch at the start."""
    lane_bytes: int
    """What the lanes beyond the first take besides their activations."""
    micro_batch_bytes: int
    """The peak with the micro-batch of the settings and with all lanes, when shapes have come in and left holes."""
    row_bytes: int
    """The same with one text whose activations are kept."""
    least_bytes: int
    """The peak with one text, and activation checkpointing if that takes less: with less memory it cannot be trained."""


def shape_of(config: Mapping[str, Any], weights: int | None, labels: int) -> Shape | None:
    """The numbers of a model. `config` is its config.json, `weights` the number of parameters in its files. `weights` is
    None where there are no files. Returns None where the config does not tell.
    """
    numbers = [_number(config, *names) for names in _NAMES]
    if any(number is None for number in numbers):
        return None
    vocabulary, hidden, layers, heads, intermediate = (number or 0 for number in numbers)
    positions = _number(config, "max_position_embeddings")
    kinds = _number(config, "type_vocab_size") or 0
    if weights is None:
        layer = 4 * (hidden * hidden + hidden) + 2 * hidden * intermediate + intermediate + hidden + 4 * hidden
        weights = (vocabulary + (positions or 0) + kinds) * hidden + 2 * hidden + layers * layer
        weights += hidden * hidden + hidden + (hidden + 1) * labels  # the pooler and the classifier
    return Shape(
        parameters=min(weights, MOST_NUMBER**2),
        embeddings=vocabulary * hidden,
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=intermediate,
        positions=positions,
    )


_NAMES = (
    ("vocab_size",),
    ("hidden_size", "dim"),
    ("num_hidden_layers", "n_layers"),
    ("num_attention_heads", "n_heads"),
    ("intermediate_size", "hidden_dim"),
)
"""The names in a config, BERT's and DistilBERT's."""


def decoder_shape_of(
    config: Mapping[str, Any],
    weights: int | None,
    *,
    rank: int | None,
    stored: str | None = None,
    base_bits: int | None = None,
) -> Shape | None:
    """The same of a decoder in the manner of Llama, with adapters of this rank in all layers. No rank means that all weights
    are trained; `stored` and `base_bits` are as `Shape` has them. Returns None where the config is of another manner, and where
    there are no weights.
    """
    numbers = [_number(config, names[0]) for names in _NAMES]
    if weights is None or any(number is None for number in numbers):
        return None
    vocabulary, hidden, layers, heads, intermediate = (number or 0 for number in numbers)
    key_values = hidden * (_number(config, "num_key_value_heads") or heads) // heads
    widths = 2 * (2 * hidden) + 2 * (hidden + key_values) + 3 * (hidden + intermediate)
    return Shape(
        parameters=min(weights, MOST_NUMBER**2),
        embeddings=vocabulary * hidden,
        layers=layers,
        hidden=hidden,
        heads=heads,
        intermediate=intermediate,
        positions=_number(config, "max_position_embeddings"),
        is_decoder=True,
        key_values=key_values,
        trained=None if rank is None else layers * rank * widths,
        is_tied=config.get("tie_word_embeddings") is True,
        stored=stored,
        base_bits=None if rank is None else base_bits,
    )


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config[name] for name in names if name in config)
    return next((min(value, MOST_NUMBER) for value in found if isinstance(value, int) and value > 0), None)


def estimate(
    shape: Shape,
    *,
    amp: str,
    max_length: int,
    micro_tokens: int,
    effective_batch: int,
    checkpointing: bool,
    lanes: int = 1,
) -> Estimate:
    length = min(max_length, shape.positions or max_length)
    rows = max(1, min(effective_batch, micro_tokens // length))
    of_lanes = (lanes - 1) * (lane_bytes(apart=apart(shape), amp=amp) + _scores_bytes(shape, amp))
    kept_bytes = grown_bytes(shape, amp=amp, rows=rows, length=length, checkpointing=checkpointing)
    return Estimate(
        shape=shape,
        held_bytes=held_bytes(shape, amp=amp),
        length=length,
        rows=rows,
        lane_bytes=of_lanes,
        micro_batch_bytes=kept_bytes + of_lanes + KEPT_BYTES,
        row_bytes=peak_bytes(shape, amp=amp, rows=1, length=length, checkpointing=False) + KEPT_BYTES,
        least_bytes=least_bytes(shape, amp=amp, length=length),
    )


def held_bytes(shape: Shape, *, amp: str) -> int:
    return base_bytes(shape) + _weights_bytes(shape, amp)


def base_bytes(shape: Shape) -> int:
    """What the process holds besides the model."""
    return BASE_BYTES if shape.is_decoder else ENCODER_BASE_BYTES


def apart(shape: Shape) -> int:
    """How many weights each lane has a gradient of its own for: those of a decoder's last layer, which may be its table of
    tokens too. Lanes share the gradients of all others, but for a few.
    """
    return shape.embeddings if shape.is_decoder and shape.trained is None else 0


def _weights_bytes(shape: Shape, amp: str) -> int:
    """Under mixed precision frozen weights are held rounded, but for a table of tokens that does not come so; where it is the
    last layer as well, a rounded copy lies beside it.
    """
    if shape.shared_by > 1:
        return BYTES_PER_PARAMETER * shape.parameters // shape.shared_by + GATHERED_BYTES * _gathered(shape)
    if shape.trained is None:
        return weights_bytes(parameters=shape.parameters, trained=shape.parameters)
    if shape.base_bits is not None:
        in_bits = max(0, shape.parameters - shape.embeddings * (1 if shape.is_tied else 2))
        others = replace(shape, parameters=shape.parameters - in_bits, base_bits=None)
        return int(in_bits * (shape.base_bits / 8 + BLOCK_BYTES / BLOCK_WEIGHTS)) + _weights_bytes(others, amp)
    if amp != "off" and shape.stored == amp:
        parameters = shape.parameters + shape.trained
        return weights_bytes(parameters=parameters, trained=shape.trained, rounded=shape.parameters)
    rounded = 0 if amp == "off" else max(0, shape.parameters - shape.embeddings)
    copy_bytes = ROUNDED_BYTES * shape.embeddings if rounded and shape.is_tied else 0
    return copy_bytes + weights_bytes(parameters=shape.parameters + shape.trained, trained=shape.trained, rounded=rounded)


def _gathered(shape: Shape) -> int:
    """The weights of the largest part of a model that is gathered at once: a layer, or the table of tokens."""
    return max(shape.embeddings, (shape.parameters - shape.embeddings) // max(1, shape.layers))


def device_bytes(shape: Shape, *, amp: str, optimizer_on_host: bool) -> int:
    """What a GPU holds all the time; with Adam's moments on the host it still needs room for those of the largest parameter."""
    if not optimizer_on_host:
        return _weights_bytes(shape, amp)
    if shape.trained is not None:
        return _weights_bytes(shape, amp) - MOMENTS_BYTES * shape.trained
    return (BYTES_PER_PARAMETER - MOMENTS_BYTES) * shape.parameters + MOMENTS_BYTES * shape.embeddings


def peak_bytes(shape: Shape, *, amp: str, rows: int, length: int, checkpointing: bool) -> int:
    """What the worker uses while a micro-batch of `rows` texts of `length` tokens is computed."""
    activations = _activations_bytes(shape, amp=amp, rows=rows, length=length, checkpointing=checkpointing)
    return held_bytes(shape, amp=amp) + _copies_bytes(shape, amp) + _scores_bytes(shape, amp) + activations


def grown_bytes(shape: Shape, *, amp: str, rows: int, length: int, checkpointing: bool) -> int:
    """What the worker holds then after some steps: what it uses, and the holes between, which it hands back where memory is
    short.
    """
    activations = _activations_bytes(shape, amp=amp, rows=rows, length=length, checkpointing=checkpointing)
    used_bytes = peak_bytes(shape, amp=amp, rows=rows, length=length, checkpointing=checkpointing)
    return used_bytes + int((DECODER_HOLES_FRACTION if shape.is_decoder else ENCODER_HOLES_FRACTION) * activations)


def _copies_bytes(shape: Shape, amp: str) -> int:
    """The weights in the lower precision, which are made anew in each step."""
    if shape.shared_by > 1:  # each is made for its layer alone
        return CONSTANTS[amp].copies * _gathered(shape)
    if not shape.is_decoder:
        return max(0, CONSTANTS[amp].copies * (shape.parameters - shape.embeddings))
    rounded = shape.parameters - (0 if shape.is_tied else shape.embeddings)
    return 0 if amp == "off" or shape.trained is not None else max(0, ROUNDED_BYTES * rounded)


def _activations_bytes(shape: Shape, *, amp: str, rows: int, length: int, checkpointing: bool) -> int:
    tokens = rows * length
    if shape.is_decoder:
        return _decoder_bytes(shape, amp=amp, tokens=tokens, checkpointing=checkpointing)
    constants = CONSTANTS[amp]
    of_a_layer = tokens * (constants.hidden * shape.hidden + constants.intermediate * shape.intermediate)
    of_a_block = constants.attention * min(rows * shape.heads * length**2, max(BLOCK_NUMBERS, length**2))
    if checkpointing:
        # Each layer's input is kept, and one layer at a time computed again, with its gradients beside it.
        return int(4 * shape.layers * tokens * shape.hidden + 2 * of_a_layer + of_a_block)
    return int(max(shape.layers, 2) * of_a_layer + of_a_block)


def _decoder_bytes(shape: Shape, *, amp: str, tokens: int, checkpointing: bool) -> int:
    """What a decoder keeps of its tokens. Attention on a CPU keeps no matrices."""
    constants = DECODERS[amp]
    of_a_unit = constants.hidden + (constants.norms if shape.trained is None else 0)
    of_a_token = of_a_unit * shape.hidden + constants.key_values * shape.key_values
    of_a_token += constants.intermediate * shape.intermediate
    # One layer more is at work, with gradients beside what it keeps.
    layers = 2 if checkpointing else shape.layers + 1
    kept = 4 * shape.layers * shape.hidden if checkpointing else 0
    return int(tokens * (layers * of_a_token + kept))


def _scores_bytes(shape: Shape, amp: str) -> int:
    """What the scores of a piece of the tokens take in a lane: themselves and their logarithms, which become the gradient, in
    float32; in a lower precision also what the last layer gives; and the weights of a layer that are made anew from four bits.
    """
    if not shape.is_decoder:
        return 0
    anew_bytes = 0 if shape.base_bits is None else (4 if amp == "off" else ROUNDED_BYTES) * shape.hidden * shape.intermediate
    return anew_bytes + SCORES * (2 * 4 + (0 if amp == "off" else ROUNDED_BYTES))


def least_bytes(shape: Shape, *, amp: str, length: int) -> int:
    """The least that a text of `length` tokens takes, and loading: frozen weights that came in another precision than they are
    held in are there in float32 first.
    """
    least = min(peak_bytes(shape, amp=amp, rows=1, length=length, checkpointing=on) for on in (False, True))
    is_widened = shape.trained is not None and shape.stored is not None and shape.stored != amp
    return max(least, base_bytes(shape) + FROZEN_BYTES * shape.parameters) if is_widened else least


def longest_that_fits(shape: Shape, *, amp: str, below: int, limit_bytes: int) -> int | None:
    """The length, below `below` tokens, of a text that fits alone with activation checkpointing. Returns None where none does,
    however short.
    """
    for length in range((below - 1) // LENGTH_STEP * LENGTH_STEP, 0, -LENGTH_STEP):
        if least_bytes(shape, amp=amp, length=length) <= limit_bytes:
            return length
    return None
