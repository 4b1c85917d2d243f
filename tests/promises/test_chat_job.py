"""The job of people who teach a chat model with LoRA at home, from `start` to a model that answers."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from kit.asked_again import check_accuracy, loss_of_answers
from kit.chat import dialogues, tiny_chat_model, written
from kit.cli_process import end_supervisors, memsup
from kit.killed_runs import Tally, disturbed, end_of, undisturbed
from kit.run_state import status, step_of, until

from memsup.shared.model.libraries import is_installed
from memsup.shared.paths import run_paths
from memsup.supervisor.client import demos
from memsup.supervisor.client.errors import RefusedError

pytestmark = pytest.mark.slow


def start(folder: Path, *more: str) -> Any:
    settings = ["task.kind=causal-lm", "training.device=cpu", "training.amp=off", "training.learning_rate=0.02", *more]
    flags = [word for setting in settings for word in ("--set", setting)]
    return memsup("start", "--model", "base", "--train", "chat.jsonl", "--wait", *flags, cwd=folder, within_s=300)


def test_a_chat_model_is_taught_with_adapters_and_merged(tmp_path: Path) -> None:
    import peft

    base = tiny_chat_model(tmp_path / "base")
    rows = dialogues(60)
    written(tmp_path / "chat.jsonl", [*rows[:50], {"messages": rows[0]["messages"][:1]}])
    written(tmp_path / "eval.jsonl", rows[50:])
    done = start(tmp_path, "task.eval=eval.jsonl", "training.epochs=2", "lora.targets=q_proj,v_proj,down_proj")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the assistant's messages in 'messages' are learnt" in done.stdout + done.stderr
    seen = memsup("status", "--json").document
    told, state = seen["result"], run_paths("default").state
    assert told["left_out_rows"] == 1

    tokenizer = transformers.AutoTokenizer.from_pretrained(seen["model_path"])
    plain = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    adapted = peft.PeftModel.from_pretrained(plain, seen["model_path"]).eval()
    asked_again = [row["messages"] for row in rows[50:]]
    loss, targets = loss_of_answers(adapted, tokenizer, asked_again, 512)
    assert told["targets"] == targets
    assert told["loss"] == pytest.approx(loss, rel=1e-5)
    assert told["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert check_accuracy(state)
    with adapted.disable_adapter():
        assert loss_of_answers(adapted, tokenizer, asked_again, 512)[0] > loss  # it has learnt something

    exported = memsup("export", "--merge", "--json", str(tmp_path / "merged"))
    assert exported.document == {"schema": 1, "folder": str(tmp_path / "merged"), "merged": True, "dtype": "float32"}
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    question = "Tell me of green tea 55."
    asked = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([tokenizer(asked)["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(merged(tokens).logits, adapted(tokens).logits, atol=1e-4, rtol=0)
    assert memsup("export", str(tmp_path / "merged")).returncode == 2

    shown = json.loads((state / "answers.json").read_bytes())
    assert len(shown) == 3
    assert all(example["before"] != example["after"] for example in shown)
    questions = {row["messages"][0]["content"] for row in rows[50:] if row["messages"][0]["role"] == "user"}
    assert any(example["asked"] in questions for example in shown), "a single question is shown without its template"
    in_words = " ".join(memsup("report").stdout.split())
    assert all(" ".join(f"asked {example['asked']}".split())[:40] in in_words for example in shown)
    page = Path(memsup("report", "--json").document["page"]).read_text(encoding="utf-8")
    assert "What it answers" in page
    assert page.count("<dt>before</dt>") == page.count("<dt>now</dt>") == 3
    said = memsup("predict", "--json", question).document["answers"]
    greedy = merged.generate(tokens, do_sample=False, max_new_tokens=200, pad_token_id=tokenizer.pad_token_id)
    answer = tokenizer.decode(greedy[0, tokens.shape[1] :], skip_special_tokens=True)
    assert said[0]["text"] == question
    assert said[0]["answer"].startswith(answer) or answer.startswith(said[0]["answer"])

    # What every test is held to afterwards would see other adapters.
    weights = state / "model" / "adapter_model.safetensors"
    tensors = {name: torch.zeros_like(tensor) for name, tensor in safetensors.torch.load_file(weights).items()}
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(AssertionError, match="was told, asked again"):
        check_accuracy(state)
    shutil.rmtree(state / "model")


@pytest.mark.parametrize(
    ("template", "row", "more", "sentences"),
    [
        (None, {"messages": [{"role": "user", "content": "Hi"}]}, [], ["has no chat template", "ends in Instruct or Chat"]),
        ("x", {"a": "one", "b": "two"}, [], ["its columns are 'a', 'b'", "task.prompt and task.completion"]),
        ("x", {"a": "one", "b": "two"}, ["task.prompt=a"], ["task.prompt is set and task.completion is not"]),
        ("x", {"text": "one"}, ["task.kind=text-classification", "training.method=lora"], ["is for task.kind = causal-lm"]),
    ],
)
def test_what_cannot_be_taught_is_said_before_anything_is_written(
    tmp_path: Path, template: str | None, row: dict[str, Any], more: list[str], sentences: list[str]
) -> None:
    tiny_chat_model(tmp_path / "base", template=template)
    written(tmp_path / "chat.jsonl", [row, row])
    refused = start(tmp_path, *more)
    assert refused.returncode == 2
    assert all(sentence in " ".join(refused.stderr.split()) for sentence in sentences), refused.stderr
    assert not run_paths("default").state.exists()


@pytest.fixture
def tiny_job(tmp_path: Path) -> Iterator[Path]:
    """A folder with a job of two hundred steps and many checkpoints; its cut is fixed, so that its bits are."""
    tiny_chat_model(tmp_path / "base")
    written(tmp_path / "chat.jsonl", dialogues(60))
    (tmp_path / "memsup.toml").write_text(
        '[task]\nkind = "causal-lm"\nmodel = "base"\ntrain = "chat.jsonl"\n'
        '[training]\ndevice = "cpu"\namp = "off"\nlearning_rate = 0.01\nthreads = 1\nlanes = 1\nepochs = 8\n'
        "micro_tokens = 600\neffective_batch = 8\nmax_length = 160\n"
        '[lora]\nrank = 4\ndropout = 0.2\n[checkpoint]\nevery = "300ms"\n',
        encoding="utf-8",
    )
    yield tmp_path
    end_supervisors()


def test_a_pause_that_gives_memory_back_and_a_lower_limit_change_nothing_that_is_learnt(tiny_job: Path) -> None:
    """A limit that is lowered while it trains, and one while it rests."""
    expected = undisturbed(tiny_job, "undisturbed")
    begun = memsup("start", "--run", "disturbed", "--set", "limits.ram=3GiB", cwd=tiny_job)
    assert begun.returncode == 0, begun.stderr
    until(lambda seen: step_of(seen) > 3, run="disturbed")
    squeezed = memsup("start", "--run", "disturbed", "--set", "limits.ram=512MiB", cwd=tiny_job)
    assert squeezed.returncode == 0, squeezed.stderr
    step = step_of(status("disturbed"))
    until(lambda seen: step_of(seen) > step + 3, run="disturbed")
    assert status("disturbed")["memory"]["limit_bytes"] == 512 << 20
    assert memsup("pause", "--release", "--run", "disturbed").returncode == 0
    paused = status("disturbed")
    assert paused["worker_pid"] is None
    assert paused["progress"]["step"] < expected.step
    lowered = memsup("start", "--run", "disturbed", "--set", "limits.ram=1GiB", cwd=tiny_job)
    assert lowered.returncode == 0, lowered.stderr
    assert memsup("resume", "--run", "disturbed").returncode == 0
    assert memsup("wait", "--run", "disturbed", within_s=240).returncode == 0
    assert status("disturbed")["memory"]["limit_bytes"] == 1 << 30
    assert status("disturbed")["restarts"] == 0
    assert end_of(run_paths("disturbed")) == expected


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_chat_model_that_is_killed_ends_with_the_bits_of_the_undisturbed_run(tiny_job: Path) -> None:
    """By signals; by day `worker/test_causal_lm.py` does it in one process."""
    kills, epochs = 40, 600
    file = tiny_job / "memsup.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("epochs = 8", f"epochs = {epochs}"), encoding="utf-8")
    seed = random.SystemRandom().randrange(2**32)
    expected, tally = undisturbed(tiny_job, "undisturbed"), Tally()
    found = disturbed(tiny_job, "killed", random.Random(seed), tally, kills=kills, longest_life_s=5.0)
    assert found == expected, f"seed {seed}"
    assert tally.total >= kills // 2, tally
    print(f"seed {seed}, {tally}")


# ---------------------------------------------------------------------------------------------------------------------
# The built-in jobs


@pytest.mark.parametrize("job", demos.WRITTEN)
def test_a_demo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(demos.WRITTEN, job, demos.WRITTEN[job]._replace(packages=("torch", "no_such_package")))
    with pytest.raises(RefusedError, match="needs no_such_package") as refused:
        demos.make_demo(job, print)
    assert any("pip install --no-deps" in line for line in refused.value.more)
    assert not any("{" in line for line in refused.value.more)
    assert not list(tmp_path.iterdir())


def test_what_a_demo_would_be_made_of_is_looked_at_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An archive that is another one is refused in a sentence, by the process that would read it, and nothing is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(demos.WRITTEN, "english", demos.WRITTEN["english"]._replace(packages=()))
    (tmp_path / "memsup").mkdir()
    (tmp_path / "memsup" / str(demos.WRITTEN["english"].download)).write_bytes(b"something else")
    with pytest.raises(RefusedError, match="is not what its makers have published: delete it, and download it again"):
        demos.make_demo("english", print)
    assert not (tmp_path / "memsup" / "demo-english").exists()


def make_or_skip(monkeypatch: pytest.MonkeyPatch, job: str, cache: Path) -> None:
    wanted = demos.WRITTEN[job]
    archive = Path.home() / ".cache" / "memsup" / (wanted.download or "")
    if not all(map(is_installed, wanted.packages)) or not archive.exists():
        pytest.skip(f"NOT RUN: what `memsup start --demo {job}` is made of is not here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (cache / "memsup").mkdir()
    if wanted.download:
        shutil.copyfile(archive, cache / "memsup" / wanted.download)


@pytest.mark.nightly
def test_the_demo_talks_otherwise_when_it_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_or_skip(monkeypatch, "chat", tmp_path)
    settings = ["--set", "training.epochs=0.5", "--set", "limits.ram=3GiB"]
    done = memsup("start", "--demo", "chat", "--wait", *settings, cwd=tmp_path, within_s=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = json.loads((run_paths("default").state / "answers.json").read_bytes())
    assert len({example["asked"] for example in shown}) == 3
    assert any(example["before"] != example["after"] for example in shown)


@pytest.mark.nightly
def test_the_english_demo_is_right_more_often_than_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_or_skip(monkeypatch, "english", tmp_path)
    settings = ["--set", "training.epochs=0.2", "--set", "limits.ram=3GiB"]
    done = memsup("start", "--demo", "english", "--wait", *settings, cwd=tmp_path, within_s=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status()["result"]["accuracy"] > 0.7
