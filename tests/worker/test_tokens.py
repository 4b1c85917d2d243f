"""Tokens are those that transformers makes of each row asked alone, whatever the tokenizer and the text, in bounded memory."""

from __future__ import annotations

import csv
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from kit.lone_supervisor import tiny_settings
from kit.one_life import one_life
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.normalizers import BertNormalizer
from transformers import PreTrainedTokenizerFast

from memsup.shared.data.errors import InputError
from memsup.shared.loading import load as load_settings
from memsup.shared.paths import RunPaths
from memsup.worker import train
from memsup.worker.evaluating import evaluate
from memsup.worker.memory import Peak
from memsup.worker.tasks import Prepared, find_task
from memsup.worker.tasks import tokens as tokens_module
from memsup.worker.tasks.characters import SPECIAL_TOKENS, character_vocabulary, write_tokenizer
from memsup.worker.tasks.corpus import Text
from memsup.worker.tasks.tokens import Tokens, find_seam, find_word

LEARNT_FROM = [
    "the room was good and the breakfast came late, though nobody's staff said so in 2024!",
    "房间很干净,服务热情。早餐 very good 性价比高!空调坏了;没人修?",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg== İstanbul café ﬁne ①②③ 😀👩‍👩‍👧 naïve Ｆｕｌｌ",
] * 2
SPELT = ["<s>", "</s>", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "<mask>", "<extra>", "new york", "\ue000", "\ue001"]
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def wrapped(made: Tokenizer, learns: Any, *, bert: bool = True, **how: Any) -> Any:
    """A tokenizer learnt from the texts above, with the special tokens of BERT, or of RoBERTa, and with what is added later."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if bert else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(made.model, models.BPE) and not bert else []
    extra = {"initial_alphabet": alphabet} if alphabet else {}
    if learns is trainers.UnigramTrainer:
        extra["unk_token"] = names[1 if bert else 3]
    made.train_from_iterator(LEARNT_FROM, learns(vocab_size=400, special_tokens=names, show_progress=False, **extra))
    first, last = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    middle = "[SEP]:0" if bert else "</s>:0 </s>:0"
    made.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {middle} $B:1 {last}:1",
        special_tokens=[(name, made.token_to_id(name)) for name in (first, last)],
    )
    how.setdefault(
        "model_input_names", ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    )
    roles = ("pad", "unk", "cls", "sep", "mask") if bert else ("bos", "pad", "eos", "unk", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{f"{role}_token": name for role, name in zip(roles, names, strict=True)}, **how
    )


def word_piece(**how: Any) -> Any:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return wrapped(made, trainers.WordPieceTrainer, **how)


def cased_word_piece() -> Any:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False, strip_accents=False)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(made, trainers.WordPieceTrainer)


def byte_level(*, splits: str | None = None, prefix: bool = False) -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if splits is not None:
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(splits), "isolated"), pre_tokenizers.ByteLevel(prefix, use_regex=False)]
        )
    return wrapped(made, trainers.BpeTrainer, bert=False)


def bare_byte_level() -> Any:
    """As GPT-2's, which adds nothing."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    return tokenizer


def words(pre_tokenizer: Any, **how: Any) -> Any:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizer
    return wrapped(made, trainers.WordLevelTrainer, **how)


def whole_text_bpe() -> Any:
    """As Llama's: no words, so that any character may change any token."""
    made = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrapped(made, trainers.BpeTrainer)


def unigram() -> Any:
    made = Tokenizer(models.Unigram())
    blanks = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.NFKC(), normalizers.Strip(), blanks])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = wrapped(made, trainers.UnigramTrainer, padding_side="left", pad_token_type_id=3)
    types = [f"{name}:{kind}" for name, kind in (("$A", 0), ("[SEP]", 0), ("[CLS]", 2))]
    pair = [f"{name}:{kind}" for name, kind in (("$A", 0), ("[SEP]", 0), ("$B", 1), ("[SEP]", 1), ("[CLS]", 2))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # XLNet's
        single=" ".join(types), pair=" ".join(pair), special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    return tokenizer


def characters() -> Any:
    """What memsup makes for a model that brings none."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(character_vocabulary([LEARNT_FROM], at_most=500), Path(folder), max_length=512)
        return transformers.AutoTokenizer.from_pretrained(folder)


def with_added() -> Any:
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("new york", normalized=True), AddedToken("good", single_word=True), "性价"])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<extra>", lstrip=True, rstrip=True)]})
    return tokenizer


def with_words_added() -> Any:
    """Tokens that lie in a word, of which some take the blanks beside them."""
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("newyork", normalized=True), AddedToken("oo")])
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<extra>", lstrip=True, rstrip=True)]})
    return tokenizer


def with_one_alone() -> Any:
    tokenizer = word_piece()
    tokenizer.add_tokens([AddedToken("good", single_word=True)])
    return tokenizer


def word_piece_by_blanks() -> Any:
    tokenizer = word_piece()
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(handle_chinese_chars=False, clean_text=False)
    return tokenizer


def left_word_piece() -> Any:
    return word_piece(truncation_side="left")


KINDS: dict[str, Callable[[], Any]] = {
    "WordPiece": word_piece,
    "WordPiece, cased": cased_word_piece,
    "WordPiece, cut on the left": left_word_piece,
    "WordPiece, more tokens": with_added,
    "WordPiece, more words": with_words_added,
    "WordPiece, a token alone": with_one_alone,
    "WordPiece, by blanks": word_piece_by_blanks,
    "BPE of bytes": byte_level,
    "BPE of bytes, a blank before": functools.partial(byte_level, prefix=True),
    "BPE of bytes, Qwen": functools.partial(byte_level, splits=QWEN),
    "BPE of bytes, GPT-2": bare_byte_level,
    "BPE of whole texts": whole_text_bpe,
    "Unigram": unigram,
    "words": functools.partial(words, pre_tokenizers.WhitespaceSplit()),
    "words, digits": functools.partial(
        words, pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Punctuation(), pre_tokenizers.Whitespace()])
    ),
    "characters": characters,
    "code points": transformers.CanineTokenizer,
}
SEAMLESS = {"WordPiece, cut on the left", "WordPiece, more tokens", "BPE of whole texts", "code points"}
"""Those that may look at the whole text, or of which nothing is known."""

OF_WORDS = {"WordPiece", "WordPiece, more words", "WordPiece, by blanks", "characters"}
"""Those that see no more than a word at a time, which are asked once for each word."""

tokenizer_of = functools.cache(lambda kind: KINDS[kind]())

PIECES = [
    *SPELT,
    "data:image/png;base64,",
    "iVBORw0KGgo",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\0",
    "😀",
    "👩‍👩‍👧",
    "\u0301",
    "\u3000",
    "\n",
]
PIECES += ["newyork", "房good间", "good,oo", "\u4dff", "\u9fff", "\ua000", "한국어", "\x1f"]
PIECES += ["  ", " ", " ", " ", "good", "The", "房", "间。", ",", "2024", "'s", "``", "  \t", "ﬁ", "İ", "①", "▁", "\U0010ffff"]
LONG = st.builds(
    lambda parts, times: "".join(parts) * times, st.lists(st.sampled_from(PIECES), max_size=6), st.sampled_from([1, 1, 2, 60])
)
TEXTS = st.lists(LONG | st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=3).map("".join)

SHORTER = TEXTS.map(lambda text: text[:300])
"""For pairs, which take transformers the square of their length."""


def asked_alone(tokenizer: Any, text: Text, max_length: int) -> tuple[list[int], list[int] | None]:
    """As the pipeline asks."""
    texts = (text,) if isinstance(text, str) else text
    found = tokenizer(*texts, truncation=True, max_length=max_length)
    return found["input_ids"], found.get("token_type_ids")


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=60), max_size=6))
@example(["İstanbul", "ΣΊΣΥΦΟΣ", "e\u0301\u0323 한국어 각 ﬁ", "日本 A\tb\u200d"])
def test_the_vocabulary_is_that_of_the_texts_as_the_tokenizer_sees_them(texts: list[str]) -> None:
    """Each character is normalized once, whatever stands beside it."""
    seen = Counter(character for text in texts for character in BertNormalizer(lowercase=True).normalize_str(text))
    known = {character for character, count in seen.items() if count > 1 and not character.isspace()}
    made = character_vocabulary([texts], at_most=10_000)[len(SPECIAL_TOKENS) :]
    assert {piece.removeprefix("##") if len(piece) > 1 else piece for piece in made} == known
    often = [seen[piece] for piece in made if len(piece) == 1]
    assert often == sorted(often, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(st.lists(TEXTS | st.tuples(SHORTER, SHORTER), min_size=1, max_size=4), st.sampled_from([7, 8, 13, 40]))
@example(["x" * 100_000, "data:image/png;base64," + "iVBORw0KGgo" * 9_000 + " the room was good", "房间" * 20_000], 40)
@example([("房间很好。 good " * 90, "late " * 8), ("good " * 8, "房间。" * 200), ("good " * 99, "late " * 100)], 12)
@example([("房间很好。 good " * 90, "late " * 8), ("good " * 8, "房间。" * 200), ("late " * 100, "good " * 99)], 13)
def test_tokens_are_those_of_each_row_asked_alone(kind: str, texts: list[Text], max_length: int) -> None:
    tokenizer = tokenizer_of(kind)
    encoded = Tokens(tokenizer, max_length).encode(texts)
    wanted = [asked_alone(tokenizer, text, max_length) for text in texts]
    assert [list(row) for row in encoded.tokens] == [tokens for tokens, _ in wanted]
    types = [None] * len(texts) if encoded.token_types is None else encoded.token_types
    assert [*types] == [kinds for _, kinds in wanted]


@pytest.mark.parametrize("kind", ["WordPiece", "BPE of bytes", "Unigram", "characters"])
def test_a_text_of_millions_of_characters_takes_little_memory(kind: str) -> None:
    """A tokenizer that is given all of it takes up to 650 bytes a character."""
    text = ("房间很干净,服务热情。早餐 very good " * 200_000)[:4_000_000]
    tokens, memory = Tokens(tokenizer_of(kind), 128), Peak(None)
    before = memory.begin()
    encoded = tokens.encode([text])
    assert memory.end() - before < 48 << 20
    assert [list(row) for row in encoded.tokens] == [asked_alone(tokenizer_of(kind), text[:20_000], 128)[0]]


def test_a_seam_is_known_of_the_kinds_that_have_words() -> None:
    assert {kind for kind in KINDS if find_seam(tokenizer_of(kind)) is None} == SEAMLESS


def test_words_are_known_of_the_kinds_that_see_one_at_a_time() -> None:
    assert {kind for kind in KINDS if find_word(tokenizer_of(kind)) is not None} == OF_WORDS


def test_what_is_remembered_of_words_is_bounded_and_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_MOST_KNOWN_CHARS", 2_000)
    texts = [" ".join(f"good{number}" for number in range(start, start + 8)) for start in range(0, 4_000, 8)] * 2
    tokens = Tokens(tokenizer_of("WordPiece"), 16)
    wanted = tokenizer_of("WordPiece")(texts, truncation=True, max_length=16)["input_ids"]
    for start in range(0, len(texts), 50):
        assert [*tokens.encode(texts[start : start + 50]).tokens] == wanted[start : start + 50]
        assert sum(map(len, tokens._known)) <= 2_000 + sum(map(len, texts[start : start + 50]))


def test_what_does_not_fit_beside_the_tokens_that_are_added_is_said() -> None:
    with pytest.raises(InputError, match=r"max_length = 4 leaves no room .* adds 4 tokens to each: set it to 5 or more"):
        Tokens(tokenizer_of("BPE of bytes"), 4).encode([("good", "late")])


# --------------------------------------------------------------------------------------------------------------------
# Texts without tokens, and with special ones


def test_rows_without_tokens_and_with_special_ones_are_found() -> None:
    texts: list[Text] = [
        "good",
        "\u200d",
        "good [SEP] late",
        "[UNK] x",
        ("\u200d", ""),
        ("\u200d", "late"),
        ("[MASK]", "a [SEP]"),
    ]
    encoded = Tokens(tokenizer_of("WordPiece"), 16).encode(texts)
    assert encoded.tokenless.tolist() == [False, True, False, False, True, False, False]
    assert encoded.special == {2: [3], 6: [3, 4]}


def test_a_character_may_be_a_special_token() -> None:
    """CANINE's tokens are code points: a zero byte is its padding, and a private character ends its texts."""
    encoded = Tokens(tokenizer_of("code points"), 16).encode(["a\0b", "\ue001", "\U0010ffff"])
    assert encoded.special == {0: [0], 1: [0xE001]}
    assert encoded.tokens[2] == [0xE000, 0x10FFFF, 0xE001]


def load(folder: Path, model: Path, rows: list[tuple[str, ...]], **values: Any) -> Prepared:
    """The task on rows of texts and a label, of which the texts are in columns of their own."""
    names = ["text", "label"] if len(rows[0]) == 2 else ["text", "text_pair", "label"]
    file = folder / "rows.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([names, *rows])
    wanted = {"task.model": str(model), "task.train": str(file), "training.max_length": 64} | values
    settings = load_settings(job_file=None, flags=[], environment={}).settings
    for key, value in wanted.items():
        section, name = key.split(".")
        setattr(getattr(settings, section), name, value)
    return find_task("text-classification").load(settings, RunPaths("test", folder, folder), lambda: None)


def saved(folder: Path, kind: str, tokenizer: Any, **config: Any) -> Path:
    """A tiny model of this kind with new weights, and its tokenizer."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_attention_heads": 2}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **config)
    transformers.AutoModel.from_config(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reviews(count: int = 40) -> list[tuple[str, ...]]:
    return [(f"the room {n} was {('good', 'bad')[n % 2]} and late", ("pos", "neg")[n % 2]) for n in range(count)]


def test_texts_that_make_no_token_are_left_out_and_counted(tmp_path: Path) -> None:
    """Of a tokenizer that adds nothing: such a row would have no length."""
    words = tokenizer_of("WordPiece")
    made = Tokenizer.from_str(words.backend_tokenizer.to_str())
    made.post_processor = processors.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]", pad_token="[PAD]")
    rows = reviews()
    rows[3], rows[9] = ("\u200d", "neg"), ("\u200b\u200b", "pos")
    model = saved(tmp_path / "model", "gpt2", tokenizer, n_positions=64)
    prepared = load(tmp_path, model, rows, **{"training.eval_share": 0.25})
    assert prepared.left_out == {"their text makes no token": 2}
    assert len(prepared.train) + len(prepared.evaluation) == 38
    assert min(prepared.train.lengths.min(), prepared.evaluation.lengths.min()) > 0
    with pytest.raises(InputError, match="40 texts make no token at all, and without them too little is left of"):
        load(tmp_path, model, [("\u200d" * (n + 1), label) for n, (_, label) in enumerate(reviews())])


def test_a_special_token_in_a_text_is_named_by_its_line_and_refused_where_the_model_cannot_take_it(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("BPE of bytes")
    roles = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = saved(tmp_path / "bart", "bart", tokenizer, max_position_embeddings=64, **roles)
    rows = reviews()
    rows[7] = ("the room </s> and more", "neg")
    rows[9] = ("the room <mask> and more", "neg")
    with pytest.raises(InputError, match=r"rows.csv, line 9: the text makes the special token '</s>', and this model cannot"):
        load(tmp_path, model, rows)
    rows[7] = ("the room and more", "neg")
    told = load(tmp_path, model, rows).facts["special tokens"]
    assert told.startswith("1 texts make")
    assert told.endswith(f"the first is '<mask>' in {tmp_path / 'rows.csv'}, line 11")


def test_a_special_token_that_every_text_has_is_no_ground_for_refusal(tmp_path: Path) -> None:
    """BART takes rows of which each has as many."""
    roles = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = saved(tmp_path / "bart", "bart", tokenizer_of("BPE of bytes"), max_position_embeddings=64, **roles)
    rows = [(f"{text}</s>{text}", label) for text, label in reviews()]
    assert load(tmp_path, model, rows).facts["special tokens"].startswith("40 texts make")


# --------------------------------------------------------------------------------------------------------------------
# Pairs


def pairs(count: int = 40) -> list[tuple[str, ...]]:
    """Whether the room or the breakfast of a pair of texts is the good one."""
    words = [("good", "bad"), ("bad", "good")]
    return [
        (f"the room {n} was {words[n % 2][0]}", f"the breakfast was {words[n % 2][1]}" + " late" * (n % 5), "ab"[n % 2])
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_pairs_are_padded_as_the_tokenizer_pads_them(tmp_path: Path, kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    rows = [*pairs(), ("", "the second alone", "a"), ("the first alone", " ", "b"), ("", " ", "b")]
    model = saved(tmp_path / "model", "bert", tokenizer, max_position_embeddings=64, type_vocab_size=4)
    prepared = load(tmp_path, model, rows, **{"task.text_pair": "text_pair", "training.eval_share": 0.1})
    tokenizer = prepared.tokenizer
    assert prepared.left_out == {"they have no text": 1}
    assert prepared.facts["data"].endswith("text in 'text' and 'text_pair', label in 'label'")
    batch = prepared.train.batch(np.arange(len(prepared.train)))
    texts = {tuple(tokenizer(*row[:2])["input_ids"]): row for row in rows}
    ids, masks = batch["input_ids"], batch["attention_mask"]
    kept = [texts[tuple(row[mask == 1].tolist())] for row, mask in zip(ids, masks, strict=True)]
    wanted = tokenizer.pad([tokenizer(*row[:2]) for row in kept], return_tensors="pt")
    assert {name: batch[name].tolist() for name in wanted} == {name: wanted[name].tolist() for name in wanted}
    assert batch["labels"].tolist() == ["ab".index(row[2]) for row in kept]


def test_the_saved_model_of_pairs_asked_row_by_row_has_the_accuracy_that_was_said(tmp_path: Path) -> None:
    """A vocabulary of characters learnt from both texts; `pipeline` gives each row the types that it was trained with."""
    settings = tiny_settings(tmp_path, training__epochs=0.5, training__learning_rate=5e-3, training__eval_share=0.3)
    every = [*pairs(60), ("the first alone", "", "a"), ("", "the second alone", "b")] * 2
    with (tmp_path / "reviews.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("text", "text_pair", "label"), *every])
    settings.task.text_pair = "text_pair"
    with one_life(settings) as life:
        while life.step < life.schedule.total_steps:
            train.take_step(life)
        evaluate(life)
        assert life.evaluated is not None
        said, examples = life.evaluated.metrics["accuracy"], life.prepared.evaluation
        model, tokenizer = life.prepared.model.eval(), life.prepared.tokenizer
        batch = examples.batch(np.arange(len(examples)))
        with torch.no_grad():
            chances = model(**{name: values for name, values in batch.items() if name != "labels"}).logits.softmax(-1)
        lines = [int(examples.where(np.array([row])).rpartition(" ")[2]) for row in range(len(examples))]
    ask = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    rows = [every[line - 2] for line in lines]
    answers = [ask({"text": first, "text_pair": second}, truncation=True, max_length=48) for first, second, _ in rows]
    right = [answer["label"] == label for answer, (_, _, label) in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(said)
    assert [answer["score"] for answer in answers] == pytest.approx(chances.max(-1).values.tolist(), abs=1e-6)
    assert batch["token_type_ids"].max() == 1
