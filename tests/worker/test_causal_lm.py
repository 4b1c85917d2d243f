"""A chat model learns to answer: what of a dialogue is learnt, and the same under any cut, as a whole and by adapters."""

from __future__ import annotations

import csv
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.chat import CHATML, MARKED, tiny_chat, tiny_chat_model, tiny_tokenizer, written
from kit.one_life import StarvedTask, exhaustions, lives_to_the_end, one_life, whole_life

from memsup.shared.data.chat import find_fields
from memsup.shared.data.chat_check import locate_dialogues
from memsup.shared.data.columns import find_columns
from memsup.shared.data.errors import InputError
from memsup.shared.data.sources import locate
from memsup.shared.paths import run_paths
from memsup.worker import train
from memsup.worker.compute import token_loss
from memsup.worker.evaluating import evaluate
from memsup.worker.plan.entry import Entry
from memsup.worker.plan.padding import Padding
from memsup.worker.saving import save
from memsup.worker.tasks import Prepared, causal_lm
from memsup.worker.tasks.answering import load_answering
from memsup.worker.tasks.dialogues import DialogueReader
from memsup.worker.tasks.sequences import IGNORED, NOTHING, LeftOut, Sequence
from memsup.worker.training import Training

pytestmark = pytest.mark.slow

WEIGHTS = "model.safetensors"
WIDE = re.compile(r"norm|lora_")
"""The weights that are float32 whatever they came in."""


def gradient(training: Training) -> torch.Tensor:
    return torch.cat([value.grad.flatten() for value in training.prepared.model.parameters() if value.grad is not None])


def losses_by_torch(training: Training, rows: np.ndarray[Any, Any]) -> torch.Tensor:
    """The mean over all targets of the rows, each computed alone and by transformers' own scores."""
    total, targets = torch.zeros(()), 0
    for row in rows:
        batch = training.prepared.train.batch(np.array([row]))
        scores = training.prepared.model(input_ids=batch["input_ids"]).logits
        total = total + torch.nn.functional.cross_entropy(
            scores[0, :-1], batch["labels"][0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        targets += int((batch["labels"] != IGNORED).sum())
    return total / targets


WAYS = {
    "lora": {},
    "lora with dropout": {"lora__dropout": 0.3, "lora__rslora": True},
    "lora of the head": {"lora__targets": "q_proj,lm_head"},
    "full, tied": {"training__method": "full"},
    "gpt2 with dropout": {},
}


@pytest.mark.parametrize("way", WAYS)
def test_any_cut_gives_the_gradient_of_all_rows(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the head's scores are computed by a few tokens at a time; without dropout, it is that of transformers."""
    kind = "gpt2" if way.startswith("gpt2") else "llama"
    model = tiny_chat_model(
        tmp_path / "model", kind=kind, **({"tie_word_embeddings": way.endswith("tied")} if kind == "llama" else {})
    )
    wanted = tiny_chat(tmp_path, model=model, training__threads=2, training__lanes=2, **WAYS[way])
    with one_life(wanted) as life:
        assert life.prepared.padding is Padding.RIGHT
        life.settings.clip_norm = "off"
        with torch.no_grad():  # adapters begin with nothing to say
            for name, parameter in life.prepared.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        rows = np.arange(16)
        weight = life.task.weight(life.prepared.train, rows)
        monkeypatch.setattr(token_loss, "_numbers", 1 << 23)
        life.plan._put(Entry(step=1, start=100_000, lanes=2, one_lane=True, cause="all at once", at_unix_s=0.0))
        whole = train._accumulate(life, 1, rows)
        assert whole is not None
        assert whole.weight == weight
        expected = gradient(life)
        if "dropout" not in way:
            life.prepared.model.zero_grad(set_to_none=True)
            by_torch = losses_by_torch(life, rows)
            by_torch.backward()
            assert float(whole.figures[0]) == pytest.approx(by_torch.item(), rel=1e-6)
            assert torch.linalg.vector_norm(gradient(life) - expected) <= 1e-6 * torch.linalg.vector_norm(expected)

        @given(
            micro_tokens=st.integers(1, 3000),
            activation_checkpointing=st.booleans(),
            one_lane=st.booleans(),
            piece=st.integers(1, 1 << 16),
        )
        @settings(max_examples=6)
        def any_cut(micro_tokens: int, activation_checkpointing: bool, one_lane: bool, piece: int) -> None:
            monkeypatch.setattr(token_loss, "_numbers", piece)
            monkeypatch.setattr(token_loss, "LEAST_PIECE_TOKENS", 1)
            life.plan._put(
                Entry(
                    step=1,
                    start=micro_tokens,
                    lanes=2,
                    one_lane=one_lane,
                    activation_checkpointing=activation_checkpointing,
                    cause="another cut",
                    at_unix_s=0.0,
                )
            )
            cut = train._accumulate(life, 1, rows)
            assert cut is not None
            assert float(cut.figures[0]) == pytest.approx(float(whole.figures[0]), rel=1e-6)
            assert torch.linalg.vector_norm(gradient(life) - expected) <= 1e-6 * torch.linalg.vector_norm(expected)

        any_cut()


# ---------------------------------------------------------------------------------------------------------------------
# What of a dialogue is learnt


def learnt(reader: DialogueReader, tokenizer: Any, file: Path) -> list[list[str]]:
    """The runs of tokens with a target in each row, as text."""
    found = []
    for row in reader.read(locate(str(file)), trains=True):
        assert isinstance(row, Sequence)
        assert len(row.marks) == len(row.tokens)
        runs: list[list[int]] = []
        places = [place for place, mark in enumerate(row.marks) if mark != NOTHING]
        for place in places:
            if place - 1 in places:
                runs[-1].append(row.tokens[place])
            else:
                runs.append([row.tokens[place]])
        found.append([tokenizer.decode(run) for run in runs])
    return found


def reader_of(folder: Path, max_length: int = 400, *, template: str | None = CHATML, **task: Any) -> tuple[DialogueReader, Any]:
    wanted = tiny_chat(folder, model=folder, **{f"task__{name}": value for name, value in task.items()})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_tokenizer(folder, template=template))
    return DialogueReader(tokenizer, wanted.task, max_length), tokenizer


TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello? <|im_end|>"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me, 小明."},
]


def test_only_answers_are_learnt(tmp_path: Path) -> None:
    shared = [
        {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], "system"), "value": turn["content"]} for turn in TALK
    ]
    for name, template, ends in (("prefix", CHATML, "<|im_end|>\n"), ("marked", MARKED, "<|im_end|>")):
        reader, tokenizer = reader_of(tmp_path / name, template=template)
        for column, turns in (("messages", TALK), ("conversations", shared)):
            file = written(tmp_path / f"{column}.jsonl", [{column: turns, "id": 1}])
            assert learnt(reader, tokenizer, file) == [["Hi." + ends, "Me, 小明." + ends]]
        file = written(tmp_path / "prompts.jsonl", [{"question": "Who?", "answer": "Me."}])
        assert learnt(reader, tokenizer, file) == [["Me." + ends]]
        for unlearnt in ({"weight": 0}, {"train": False}):
            turns = [*TALK[:2], {**TALK[2], **unlearnt}, TALK[3], {**TALK[4], "weight": 1}]
            assert learnt(reader, tokenizer, written(tmp_path / "some.jsonl", [{"messages": turns}])) == [
                ["Me, 小明.<|im_end|>\n"]
            ]
    file = written(tmp_path / "passages.jsonl", [{"question": "Who?", "context": "Ann sings.", "answer": "Ann."}] * 2)
    (row, _) = reader.read(locate(str(file)), trains=True)
    assert isinstance(row, Sequence)
    assert "Who?\n\nAnn sings.<|im_end|>" in tokenizer.decode(row.tokens)
    reader, tokenizer = reader_of(tmp_path / "plain", template=None)
    rows: list[dict[str, Any]] = [{"instruction": "Add.", "input": "1 1", "output": "2"}]
    assert learnt(reader, tokenizer, written(tmp_path / "alpaca.jsonl", rows)) == [["2<|im_end|>"]]
    (row,) = reader.read(locate(str(tmp_path / "alpaca.jsonl")), trains=True)
    assert tokenizer.decode(row.tokens) == "### Instruction:\nAdd.\n\n1 1\n\n### Response:\n2<|im_end|>"
    reader, tokenizer = reader_of(tmp_path / "text", max_length=5, template=None)
    assert learnt(reader, tokenizer, written(tmp_path / "text.jsonl", [{"text": "abcdefghijk"}])) == [
        ["bcde"],
        ["ghij"],
        ["<|im_end|>"],
    ]


def test_rows_without_anything_to_learn_are_left_out_and_cut_ones_counted(tmp_path: Path) -> None:
    reader, _ = reader_of(tmp_path, max_length=60)
    rows = [
        {"messages": TALK[:2]},
        {"messages": []},
        {"messages": [TALK[1], {"role": "assistant", "content": " "}]},
        {"messages": [{"role": "user", "content": "long " * 30}, TALK[2]]},
        {"messages": [TALK[1], {"role": "assistant", "content": "long " * 30}]},
        {"messages": [TALK[1], TALK[2]]},
    ]
    made = list(reader.read(locate(str(written(tmp_path / "rows.jsonl", rows))), trains=True))
    assert made[:3] == [LeftOut("they have no answer")] * 3
    long_question, long_answer, fits = made[3:]
    assert (long_question.is_cut, set(long_question.marks)) == (True, {NOTHING})
    assert (long_answer.is_cut, len(long_answer.tokens), long_answer.marks[-1]) == (True, 60, 0)
    assert not fits.is_cut


def test_a_column_says_what_the_system_says_where_the_messages_do_not(tmp_path: Path) -> None:
    """As ShareGPT's files have it."""
    reader, tokenizer = reader_of(tmp_path)
    prompts = [{"prompt": [TALK[1]], "completion": [TALK[2]], "system": "Be brief."}]
    for rows in ([{"conversations": TALK[number:3], "system": "Be brief."} for number in (1, 0)], prompts):
        rows.append({**rows[0], "system": {"a": 1}})
        made = list(reader.read(locate(str(written(tmp_path / "rows.jsonl", rows))), trains=True))
        texts = [tokenizer.decode(row.tokens) for row in made if isinstance(row, Sequence)]
        begins = (
            ["system\nBe brief.", "system\nBe kind.", "user\nHello"] if len(rows) == 3 else ["system\nBe brief.", "user\nHello"]
        )
        assert [text.startswith(f"<|im_start|>{begin}") for text, begin in zip(texts, begins, strict=True)] == [True] * len(
            rows
        )


def test_what_was_said_before_is_told_and_learnt_with_the_question(tmp_path: Path) -> None:
    reader, tokenizer = reader_of(tmp_path)
    row = {"instruction": "And now?", "output": "Rome.", "history": [["Where?", "Paris."]], "tools": [], "id": 7}
    file = written(tmp_path / "rows.jsonl", [row, {**row, "history": []}])
    assert learnt(reader, tokenizer, file) == [["Paris.<|im_end|>\n", "Rome.<|im_end|>\n"], ["Rome.<|im_end|>\n"]]
    assert find_fields(locate(str(file))).unused == ("id",)


def test_a_dialogue_of_thousands_of_messages_is_read_as_far_as_it_is_kept(tmp_path: Path) -> None:
    reader, _ = reader_of(tmp_path)
    turns = [{"role": ("user", "assistant")[number % 2], "content": "hello there"} for number in range(4000)]
    began_s = time.process_time()
    short, long = reader.read(
        locate(str(written(tmp_path / "rows.jsonl", [{"messages": turns[:400]}, {"messages": turns}]))), trains=True
    )
    assert time.process_time() - began_s < 10  # each answer in turn takes two minutes
    assert isinstance(short, Sequence)
    assert isinstance(long, Sequence)
    assert (long.tokens, long.marks, long.is_cut) == (short.tokens, short.marks, True)


def test_not_more_of_the_rows_is_held_than_it_takes_to_know_their_columns(tmp_path: Path) -> None:
    long = json.dumps({"messages": [{"role": "user", "content": "x" * (9 << 20)}]})
    (tmp_path / "rows.jsonl").write_text(f"{long}\n{long}\nbroken\n")
    assert find_fields(locate(str(tmp_path / "rows.jsonl"))).asked == "messages"


def test_messages_may_be_written_as_pandas_writes_them(tmp_path: Path) -> None:
    reader, tokenizer = reader_of(tmp_path)
    with (tmp_path / "rows.csv").open("w") as file:
        csv.writer(file).writerows([["id", "messages"], [1, str(TALK)]])
    assert learnt(reader, tokenizer, tmp_path / "rows.csv") == [["Hi.<|im_end|>\n", "Me, 小明.<|im_end|>\n"]]


def test_a_table_of_one_column_is_read_as_what_its_cells_hold(tmp_path: Path) -> None:
    """Messages by any name, or text; elsewhere it is said how such rows can be learnt."""
    dialogue = json.dumps(TALK)
    for column, cell, form in (
        ("messages", dialogue, "messages"),
        ("Zeile", str(TALK), "messages"),
        ("text", "Hi, you.", "text"),
    ):
        with (tmp_path / "one.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[column], [cell], [cell]])
        fields = find_fields(locate_dialogues(str(tmp_path / "one.csv")))
        assert (fields.form, fields.asked) == (form, column)
        with pytest.raises(InputError, match=r"task\.kind=causal-lm") as refused:
            find_columns(locate(str(tmp_path / "one.csv")))
        assert ("has dialogues in column" in str(refused.value)) == (form == "messages")

    with (tmp_path / "one.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[json.dumps([*TALK, turn])] for turn in TALK])
    with pytest.raises(InputError, match="is a row and names no column: put one above it that says messages"):
        find_fields(locate_dialogues(str(tmp_path / "one.csv")))

    preferred, answer = {"chosen": TALK, "rejected": TALK, "prompt": "Who?"}, [TALK[-1]]
    by_prompt = "task.prompt=prompt --set task.completion=chosen"
    for row, how in (
        (preferred, "task.messages=chosen"),
        ({**preferred, "chosen": answer}, by_prompt),
        ({**preferred, "chosen": "Me."}, by_prompt),
    ):
        written(tmp_path / "preferred.jsonl", [row, row])
        with pytest.raises(InputError, match=f"which of two answers is preferred.*: --set {re.escape(how)}"):
            find_fields(locate_dialogues(str(tmp_path / "preferred.jsonl")))
    written(tmp_path / "two.jsonl", [{"one": TALK, "other": TALK}] * 2)
    with pytest.raises(InputError, match="It is not clear what of"):
        find_fields(locate_dialogues(str(tmp_path / "two.jsonl")))

    written(tmp_path / "alpaca.jsonl", [{"instruction": f"Say {n}", "input": "", "output": f"It is {n}"} for n in range(9)])
    with pytest.raises(InputError, match=r"To learn 'output' as the answer to 'instruction': --set task\.kind=causal-lm"):
        find_columns(locate(str(tmp_path / "alpaca.jsonl")))


def test_plain_text_is_refused_with_what_makes_rows_of_it(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("Once upon a time.\nThere was a bike.\n")
    for value in (str(tmp_path / "train.txt"), str(tmp_path / "*.txt")):
        with pytest.raises(InputError, match=r'train\.txt is plain text.*JSON lines, {"text": "…"} on each, to train\.jsonl'):
            locate_dialogues(value)
    with pytest.raises(InputError, match=r"There is no .*none\.txt"):
        locate_dialogues(str(tmp_path / "none.txt"))


FORGETFUL = (
    "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}{% endfor %}"
)
STRICT = (
    CHATML
    + "{% if messages[0]['role'] == 'user' and messages|length > 2 %}{{ raise_exception('Only one question!') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "rows", "why"),
    [
        (FORGETFUL, [{"messages": TALK}], "line 1: what message 3 adds cannot be told"),
        (
            STRICT,
            [{"messages": TALK}, {"messages": TALK[1:]}],
            "line 2: the chat template of .* cannot write .*Only one question!",
        ),
        (None, [{"messages": TALK}], "has no chat template that says how to write them"),
        (CHATML, [{"messages": [{"role": "pirate", "content": "Arr"}]}], "line 1: .* message 1 is of the role 'pirate'"),
        (CHATML, [{"messages": [{**TALK[2], "weight": 0.5}]}], "message 1 has a weight of '0.5': write 1 for"),
        (CHATML, [{"messages": [{"content": "Arr"}]}], "message 1 does not say whose it is"),
        (CHATML, [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], "message 1 has a part that is no text"),
        (
            CHATML,
            [{"messages": TALK, "tools": [{"name": "search"}]}],
            "line 1: column 'tools' holds what the answer",
        ),
        (CHATML, [{"prompt": "a", "completion": "b", "images": ["a.png"]}], "column 'images' holds what the answer"),
        (CHATML, [{"prompt": "a", "completion": "b", "history": ["c"]}], "column 'history' holds no list of pairs"),
        (None, [{"prompt": "a", "completion": "b", "history": [["c", "d"]]}], "line 1 has several messages"),
        (CHATML, [{"a": 1, "b": "x"}], "not clear what of .* is to be learnt; its columns are 'a', 'b'"),
    ],
)
def test_what_cannot_be_told_is_refused_by_file_and_line(tmp_path: Path, template: str | None, rows: Any, why: str) -> None:
    reader, _ = reader_of(tmp_path, template=template)
    with pytest.raises(InputError, match=why):
        list(reader.read(locate(str(written(tmp_path / "rows.jsonl", rows))), trains=True))


# ---------------------------------------------------------------------------------------------------------------------
# Adapters


def test_a_run_that_is_continued_ends_with_the_same_bits_and_only_beside_its_base(tmp_path: Path) -> None:
    """With dropout; what the checkpoint has of the frozen weights is where they are from, and their hashes."""
    wanted = tiny_chat(tmp_path, lora__dropout=0.2)
    with one_life(wanted, name="undisturbed") as life:
        frozen = sum(value.numel() for value in life.prepared.model.parameters() if not value.requires_grad)
        for _ in range(4):
            train.take_step(life)
        digest, expected = life.audit.digest, life.prepared.weights.tensors(life.prepared.model)
    with one_life(wanted, name="disturbed") as life:
        for _ in range(2):
            train.take_step(life)
        folder = Path(save(life, last=False).path)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4 * frozen
    with one_life(wanted, name="disturbed") as life:
        assert life.step == 2
        for _ in range(2):
            train.take_step(life)
        found = life.prepared.weights.tensors(life.prepared.model)
        assert life.audit.digest == digest
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)

    base = Path(str(wanted.task.model))
    weights = safetensors.torch.load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with (
        pytest.raises(InputError, match=r"trained beside other weights than those in .*: model\.safetensors changed since"),
        one_life(wanted, name="disturbed"),
    ):
        pass
    assert folder.is_dir()


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_the_table_of_tokens_load_in_peft_and_are_merged_alike(tmp_path: Path, tied: bool) -> None:
    """Also where the table is the last layer as well: what is added to the one is not added to the other."""
    model = tiny_chat_model(tmp_path / "model", tie_word_embeddings=tied)
    wanted = tiny_chat(tmp_path, model=model, lora__targets="embed_tokens,q_proj", training__epochs=0.4)
    finished, _ = whole_life(wanted)
    assert finished is not None
    folder = str(run_paths("life").model)
    tokens = torch.arange(40, 60)[None]
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        before = plain(tokens).logits
        adapted = peft.PeftModel.from_pretrained(plain, folder).eval()
        learnt = adapted(tokens).logits
        assert not torch.allclose(before, learnt, atol=1e-2)
        assert all(value.abs().sum() > 0 for name, value in adapted.named_parameters() if "lora_" in name), "all are loaded"
        answering = load_answering(folder)
        assert torch.allclose(answering.model(tokens).logits, learnt, atol=1e-4, rtol=0)
        answering.model.save_pretrained(tmp_path / "merged")
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(merged(tokens).logits, learnt, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_saved_answers_as_the_model_that_was_trained(method: str, tied: bool, tmp_path: Path) -> None:
    """Loaded by those who have nothing of memsup: adapters by peft, whole models by transformers and its pipeline."""
    model = tiny_chat_model(tmp_path / "model", tie_word_embeddings=tied)
    wanted = tiny_chat(tmp_path, model=model, training__method=method, training__threads=2, training__lanes=2)
    tokens = torch.arange(40, 60)[None]
    with one_life(wanted) as life, torch.no_grad():
        with torch.enable_grad():
            for _ in range(4):
                train.take_step(life)
        folder = save(life, last=True).path
        learnt = life.prepared.model.eval()(input_ids=tokens).logits
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
        assert not torch.allclose(plain(tokens).logits, learnt, atol=1e-2)
        if method == "lora":
            adapted = peft.PeftModel.from_pretrained(plain, folder).eval()
            assert torch.allclose(adapted(tokens).logits, learnt, atol=1e-4, rtol=0)
        answering = load_answering(folder)
        answering.model.save_pretrained(tmp_path / "whole")
        answering.tokenizer.save_pretrained(tmp_path / "whole")
        whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
        assert torch.allclose(whole(tokens).logits, learnt, atol=1e-4, rtol=0)
    ask = transformers.pipeline("text-generation", model=str(tmp_path / "whole"), device="cpu")
    question = [{"role": "user", "content": "Tell me of green tea 5."}]
    (said,) = ask(question, max_new_tokens=12, do_sample=False)
    assert said["generated_text"][-1]["role"] == "assistant"
    asked = answering.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    greedy = answering.model.generate(**asked, max_new_tokens=12, do_sample=False)
    answer = answering.tokenizer.decode(greedy[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said["generated_text"][-1]["content"] == answer


@pytest.mark.parametrize("is_exact", [False, True])
def test_what_is_rounded_once_gives_the_same_bits(is_exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen weights and the inputs of layers, under mixed precision, also where the last layer is the table of tokens. A model
    that comes rounded is loaded so, its table too.
    """
    found, loaded = [], []
    built = train.built

    def looked_at(prepared: Prepared, *more: Any) -> torch.optim.Optimizer:
        loaded.append({value.dtype for name, value in prepared.model.named_parameters() if WIDE.search(name) is None})
        return built(prepared, *more)

    monkeypatch.setattr(train, "built", looked_at)
    for rounds in (True, False):
        with monkeypatch.context() as patched:
            if not rounds:
                patched.setattr(train, "round_frozen", lambda model, dtype: 0)
                patched.setattr(train, "round_together", lambda model: 0)
                patched.setattr(causal_lm, "lower_precision", lambda amp: None)
                patched.setattr(token_loss, "rounded_head", lambda model, device: None)
            model = tiny_chat_model(tmp_path / "model", tie_word_embeddings=True)
            if is_exact:
                exact = {name: value.bfloat16() for name, value in safetensors.torch.load_file(model / WEIGHTS).items()}
                safetensors.torch.save_file(exact, model / WEIGHTS, metadata={"format": "pt"})
                config = json.loads((model / "config.json").read_text())
                (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
            with one_life(tiny_chat(tmp_path, model=model, training__amp="bf16"), name=f"rounds-{rounds}") as life:
                frozen = {value.dtype for value in life.prepared.model.parameters() if not value.requires_grad}
                assert (torch.bfloat16 in frozen) == rounds
                table = life.prepared.model.get_input_embeddings()
                assert (table.weight.dtype is torch.bfloat16) == (rounds and is_exact)
                assert table(torch.tensor([1])).dtype is torch.float32
                for _ in range(2):
                    train.take_step(life)
                evaluate(life)
                found.append((life.audit.digest, life.evaluated, life.prepared.weights.tensors(life.prepared.model)))
    assert loaded == [{torch.bfloat16} if is_exact else {torch.float32}, {torch.float32}]
    (digest, evaluated, tensors), (other_digest, other_evaluated, others) = found
    assert (digest, evaluated) == (other_digest, other_evaluated)
    assert all(torch.equal(tensors[name], others[name]) for name in others)


def test_an_encoder_that_sees_what_it_is_to_say_is_refused(tmp_path: Path) -> None:
    model = tiny_tokenizer(tmp_path / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertLMHeadModel(transformers.BertConfig(vocab_size=259, **sizes)).save_pretrained(model)
    with pytest.raises(InputError, match="sees the tokens that it is to say"), one_life(tiny_chat(tmp_path, model=model)):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# In the loop


def test_running_out_of_memory_in_the_loss_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    ends = []
    for fails in ((), ((1, "forward"), (3, "backward"))):
        with one_life(tiny_chat(tmp_path, training__micro_tokens=4000), name=f"starved-{len(fails)}") as life:
            life.task = StarvedTask(life.task, lambda where, rows, call, fails=fails: rows > 1 and (call, where) in fails)
            for _ in range(3):
                train.take_step(life)
            assert len(exhaustions(life)) == len(fails)
            ends.append((life.audit.digest.split(".")[0], torch.cat([*map(torch.flatten, tensors_of(life).values())])))
    assert ends[0][0] == ends[1][0], "rows, loss weights and learning rates are those of the plan"
    assert torch.linalg.vector_norm(ends[0][1] - ends[1][1]) <= 1e-4 * torch.linalg.vector_norm(ends[0][1])


def tensors_of(life: Training) -> dict[str, torch.Tensor]:
    return life.prepared.weights.tensors(life.prepared.model)


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_a_chat_model_that_is_killed_ends_with_the_bits_of_the_undisturbed_run(kills: int, tmp_path: Path) -> None:
    """With dropout; by signals `promises/test_chat_job.py` does it."""
    draw = random.Random(kills)
    wanted = tiny_chat(tmp_path, lora__dropout=0.2, checkpoint__every="1ms", training__epochs=1.0 if kills < 40 else 8.0)
    undisturbed, _ = lives_to_the_end(wanted, name="undisturbed")
    killed, lived = lives_to_the_end(wanted, name="killed", killed_after=[draw.randint(5, 60) for _ in range(kills)])
    assert lived > kills // 2, "most of the kills came before the end"
    assert killed == undisturbed
