"""A hub id is looked up before the terminal may be closed: at a hub of its own, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.cli_process import memsup
from kit.hub import Hub, hub_that_answers

from memsup.shared.data.errors import InputError
from memsup.shared.model import libraries
from memsup.shared.model.folder import ModelSource, ModelSummary, check_model
from memsup.shared.model.hub import cached_folder
from memsup.supervisor.client import hub
from memsup.supervisor.client.hub import look_up

BERT = {"model_type": "bert", "id2label": {"0": "neg", "1": "pos"}}
NAMES = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def at_hub() -> Iterator[Hub]:
    with hub_that_answers() as server:
        yield server


def missing() -> ModelSummary:
    return check_model("some/model", {"HF_HOME": "/nowhere"})


def refused(environment: dict[str, str]) -> str:
    with pytest.raises(InputError) as error:
        look_up("some/model", missing(), environment)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_that_is_there_is_known_by_its_config(at_hub: Hub) -> None:
    at_hub.put("some/model", BERT | {"_attn_implementation": "somebody/kernel"}, NAMES)
    found = look_up("some/model", missing(), at_hub.environment)
    assert (found.source, found.folder) == (ModelSource.HUB, None)
    assert found.config is not None
    assert found.config["id2label"] == {"0": "neg", "1": "pos"}
    assert "somebody/kernel" in found.notes[0]
    assert [path for path, _ in at_hub.asked] == ["/some/model/resolve/main/config.json", "/api/models/some/model"]


def test_a_hub_that_lists_no_files_is_enough(at_hub: Hub) -> None:
    """As some mirrors do not."""
    at_hub.put("some/model", BERT)
    assert look_up("some/model", missing(), at_hub.environment).config == BERT


@pytest.mark.parametrize(
    ("config", "names", "says"),
    [
        (None, None, r"There is no folder some/model, and no such model at http://127.0.0.1: check its name"),
        (None, ["adapter_config.json"], "some/model is an adapter"),
        (None, ["README.md"], "no config.json, so it is no transformers model"),
        (b"<html>", NAMES, "is no JSON"),
        (b"[" * 100_000, NAMES, "is no JSON"),
        (b" " * (5 << 20), NAMES, "is no JSON"),
        ({"model_type": "mine", "auto_map": {}} | {"auto_map": {"AutoConfig": "a.B"}}, NAMES, "memsup runs none"),
        (BERT | {"quantization_config": {"quant_method": "awq"}}, NAMES, r"quantized \(awq\)"),
        ({"model_type": "vit"}, NAMES, "makes no text classifier"),
        (BERT, ["config.json", "tf_model.h5", "vocab.txt"], "are TensorFlow's"),
        (BERT, ["config.json", "model-q4.gguf"], "llama.cpp's"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused(config: Any, names: list[str] | None, says: str, at_hub: Hub) -> None:
    at_hub.put("some/model", config, names)
    assert re.search(says, text := refused(at_hub.environment)), text


@pytest.mark.skipif(libraries.is_installed("sentencepiece"), reason="NOT RUN: sentencepiece is installed here")
def test_a_package_that_is_missing_is_named_before_the_start(at_hub: Hub) -> None:
    at_hub.put("some/model", {"model_type": "deberta-v2"}, ["config.json", "pytorch_model.bin", "spm.model"])
    assert refused(at_hub.environment).endswith("pip install sentencepiece protobuf")


def test_what_only_its_owner_may_see_is_left_to_the_worker(at_hub: Hub, tmp_path: Path) -> None:
    """The token is not sent; whoever has none is told to log in."""
    at_hub.answers["/some/model/resolve/main/config.json"] = 401, b"{}"
    assert refused(at_hub.environment).endswith("log in with: hf auth login")
    (tmp_path / "token").write_text("hf_secret")
    for own in ({"HF_TOKEN": "hf_secret"}, {"HF_HOME": str(tmp_path)}):
        assert look_up("some/model", missing(), at_hub.environment | own) == missing()
    assert all(token is None for _, token in at_hub.asked)


def test_a_hub_that_cannot_be_asked_is_a_refusal(at_hub: Hub) -> None:
    at_hub.answers["/some/model/resolve/main/config.json"] = 503, b""
    assert "http://127.0.0.1 answers 503 when asked for some/model" in refused(at_hub.environment)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}"
        text = refused({"HF_ENDPOINT": address})
    assert "cannot be asked for it" in text
    assert "secret" not in text
    assert "HF_HUB_OFFLINE forbids" in refused(at_hub.environment | {"HF_HUB_OFFLINE": "1"})
    assert "HF_ENDPOINT is no address" in refused({"HF_ENDPOINT": "file:///etc"})


def test_a_hub_that_is_silent_or_endless_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes the question and says nothing; one that says a byte now and then."""
    monkeypatch.setattr(hub, "WITHIN_S", 0.8)
    for drips in (False, True):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            over = threading.Event()

            def answer(listening: socket.socket = listening, drips: bool = drips, over: threading.Event = over) -> None:
                connection, _ = listening.accept()
                with connection:
                    while not over.wait(0.05):
                        if drips:
                            connection.send(b"H")

            asked = threading.Thread(target=answer, daemon=True)
            asked.start()
            before_s = time.monotonic()
            text = refused({"HF_ENDPOINT": f"http://127.0.0.1:{listening.getsockname()[1]}"})
            assert time.monotonic() - before_s < 10
            assert "no answer within" in text
            over.set()
            asked.join()


# --------------------------------------------------------------------------------------------------------------------
# What was fetched before


def fetched(home: Path, model: str, **files: str | bytes) -> Path:
    """The cache of the hub's library with these files of a model, which are links there."""
    folder = home / "hub" / f"models--{model.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for place in (folder / "refs", folder / "blobs", snapshot):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(snapshot.name)
    for name, content in files.items():
        blob = folder / "blobs" / name
        blob.write_bytes(content if isinstance(content, bytes) else content.encode())
        (snapshot / name.replace("__", ".")).symlink_to(blob)
    return snapshot


TORCH_OF_OLD = b"\x80\x02\x8a\nl\xfc"


def test_what_was_fetched_lies_where_the_hubs_library_finds_it(tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    snapshot = fetched(tmp_path, "some/model", config__json=json.dumps(BERT))
    expected = Path(str(try_to_load_from_cache("some/model", "config.json", cache_dir=tmp_path / "hub"))).parent
    for environment in (
        {"HF_HOME": str(tmp_path)},
        {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": "/nowhere"},
        {"HUGGINGFACE_HUB_CACHE": str(tmp_path / "hub")},
    ):
        assert cached_folder("some/model", environment) == snapshot == expected
    assert cached_folder("other/model", {"HF_HOME": str(tmp_path)}) is None


def test_a_model_that_was_fetched_is_judged_like_a_folder(tmp_path: Path) -> None:
    """One that was fetched in part is not there yet."""
    environment = {"HF_HOME": str(tmp_path)}
    snapshot = fetched(tmp_path, "some/model", config__json=json.dumps(BERT), vocab__txt="[UNK]")
    assert check_model("some/model", environment).folder is None
    fetched(tmp_path, "some/model", pytorch_model__bin=TORCH_OF_OLD)
    found = check_model("some/model", environment)
    assert (found.source, found.folder, found.config) == (ModelSource.HUB, snapshot, BERT)
    (snapshot / "config.json").resolve().write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(InputError, match=r"^some/model is of type vit"):
        check_model("some/model", environment)


def test_start_asks_the_hub_and_says_what_it_found(at_hub: Hub, tmp_path: Path) -> None:
    """Exit code 2 and one sentence, before anything is written."""
    data = tmp_path / "reviews.csv"
    data.write_text("text,label\n" + "".join(f"a fine text with the number {n},{('Neg', 'pos ')[n % 2]}\n" for n in range(40)))
    start = ("start", "--dry-run", "--set", "task.model=some/model", "--set", f"task.train={data}")
    none = memsup(*start, **at_hub.environment)
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr.startswith("memsup: There is no folder some/model, and no such model at http://127.0.0.1")
    at_hub.put("some/model", BERT | {"problem_type": "regression"}, NAMES)
    found = memsup(*start, **at_hub.environment)
    assert found.returncode == 0, found.stderr
    assert "some/model (a hub id; the worker fetches it)" in found.stdout
    assert "! The model's config.json has problem_type regression; what is learnt here is single_label_" in found.stderr
    at_hub.put("some/model", BERT | {"id2label": {"0": "ham", "1": "spam"}}, NAMES)
    other = memsup(*start, **at_hub.environment)
    assert other.returncode == 2
    assert "the model's head has ham, spam, the data have Neg, pos" in other.stderr
    accepted = memsup(*start, "--accept", **at_hub.environment)
    assert (accepted.returncode, "Accepted (head-labels): The labels differ" in accepted.stderr) == (0, True)
    here = memsup("check", *start[2:], **at_hub.environment)
    assert "(head-labels)" in here.stdout + here.stderr
