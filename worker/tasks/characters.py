"""A tokenizer for models that ship none: one token a character, learnt from the training texts alone.

Written as a BERT tokenizer's files, so that `AutoTokenizer` loads it beside the model, without memsup. The same texts give the
same vocabulary, whatever their order.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""The special tokens in BERT's places: padding is 0."""


def character_vocabulary(texts: Iterable[Sequence[str | tuple[str, str]]], *, at_most: int) -> list[str]:
    """The special tokens, then the characters of `texts` by how often they occur, then by code point; `at_most` in all.

    A character that occurs once is left to `[UNK]`, so that the model learns what an unknown one is. BERT cuts text into
    words and each Chinese character is one; the others are written `##x` where they continue a word, so they stand here twice.
    """
    written = np.zeros(sys.maxunicode + 1, np.int64)
    for chunk in texts:
        parts = (part for text in chunk for part in ((text,) if isinstance(text, str) else text))
        found = np.bincount(np.frombuffer("".join(parts).encode("utf-32-le"), np.uint32))
        written[: len(found)] += found
    counts: Counter[str] = Counter()
    for code in np.flatnonzero(written).tolist():  # each is normalized by itself, so once is enough
        for normal in _normalize(chr(code)):
            counts[normal] += int(written[code])
    vocabulary = list(SPECIAL_TOKENS)
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count == 1 or character.isspace():
            continue
        vocabulary += [character] if _stands_alone(character) else [character, f"##{character}"]
    return vocabulary[:at_most]


def write_tokenizer(vocabulary: list[str], folder: Path, *, max_length: int) -> None:
    """The files from which `AutoTokenizer.from_pretrained(folder)` makes the tokenizer."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


_normalizer = BertNormalizer(lowercase=True)
_words = BertPreTokenizer()


def _normalize(text: str) -> str:
    """The text as the tokenizer sees it: lower case, no accents, no control characters, spaces around Chinese characters."""
    return str(_normalizer.normalize_str(text))


def _stands_alone(character: str) -> bool:
    """Whether the tokenizer makes a word of it even between letters, as it does with Chinese and with punctuation."""
    return len(_words.pre_tokenize_str(_normalize(f"a{character}a"))) == 3
