"""Whatever lies in a file that memsup reads: it is used as far as it makes sense, or refused in a sentence; nothing breaks.

For each parser of files there are valid documents, a way to change them (`kit/mutation.py`), and what the product does with
them, to the last word that a person sees. What it has found is a case of its own in the tests of its room.
"""

from __future__ import annotations

import json
import math
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st
from kit import TESTS
from kit.mutation import HOSTILE, Raw, bytes_changed, json_changed, lines_changed

from memsup.checkpoint import header, manifest
from memsup.checkpoint.errors import CheckpointError
from memsup.shared.data.errors import InputError
from memsup.shared.loading import load
from memsup.shared.messages import Failed, FailureCause
from memsup.shared.model_folder import check_model
from memsup.shared.paths import RunPaths
from memsup.shared.record import RecordError, RunRecord, decode_record, encode_record
from memsup.shared.run_file import read_record
from memsup.shared.settings import Settings, SettingsError, keys
from memsup.shared.status import encode_status
from memsup.supervisor.cli.logs import Source, event_line, json_line, readable
from memsup.supervisor.cli.picture import one_line, picture
from memsup.supervisor.cli.status import exit_code
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.preparing import model_shape
from memsup.supervisor.daemon.systemd import is_wanted
from memsup.supervisor.decide.readings import Machine
from memsup.supervisor.decide.run.restarts import Death, judge
from memsup.supervisor.decide.tier_lines import lines, notes
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.record import blackbox, evidence, postmortem
from memsup.supervisor.record.earlier_life import read_budget
from memsup.supervisor.record.output import ledger, worker_log
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather
from memsup.supervisor.report.page import page
from memsup.supervisor.report.terminal import screen
from memsup.supervisor.tell.notices import _read_told
from memsup.supervisor.tell.policy import Policy
from memsup.worker.plan.journal import Plan

OLD = TESTS / "data/old-state"
NOW_S = 1_790_000_000.0
NIGHTLY_S = 1800.0
MOST_CPU_S = 5.0
"""No document may cost more: all of them are small."""
MACHINE = Machine(ram_total_bytes=16 << 30, ram_available_bytes=8 << 30)


@dataclass(frozen=True)
class Parser:
    documents: st.SearchStrategy[bytes]
    use: Callable[[bytes, Path], object]
    """Does with a document what the product does, in a folder of its own; raises nothing."""
    examples: int = 120
    """How many are tried by day."""


# --------------------------------------------------------------------------------------------------------------------
# What the product does


def settings_file(content: bytes, folder: Path) -> None:
    file = folder / "memsup.toml"
    file.write_bytes(content)
    try:
        loaded = load(job_file=file, flags=[], environment={})
    except SettingsError as refused:
        _one_sentence(refused)
        return
    _settled(loaded.settings, loaded.origins)


def _one_sentence(refused: Exception) -> None:
    text = str(refused)
    assert text
    assert "\n" not in text


def _settled(settings: Settings, origins: dict[str, str]) -> None:
    try:
        resolution = resolve(settings, origins, MACHINE, None)
    except SettingsError:
        return
    assert all("\n" not in line for line in notes(resolution))
    assert lines(resolution)
    assert _round_trip(resolution.settings) == resolution.settings


def _round_trip(settings: Settings) -> Settings:
    record = msgspec.structs.replace(_record(), settings=settings)
    return decode_record(encode_record(record)).settings


def _record() -> RunRecord:
    return decode_record((OLD / "run.json").read_bytes())


def run_file(content: bytes, folder: Path) -> None:
    paths = _run(folder)
    paths.record.write_bytes(content)
    paths.status.write_bytes((OLD / "status.json").read_bytes())
    try:
        record = read_record(paths.record)
    except RecordError as refused:
        _one_sentence(refused)
        return
    assert record is not None
    assert encode_record(decode_record(encode_record(record))) == encode_record(record)
    _settled(record.settings, {})
    _shown(paths)
    _reported(paths)


def status_file(content: bytes, folder: Path) -> None:
    paths = _run(folder)
    paths.status.write_bytes(content)
    _shown(paths)
    _reported(paths)


def _shown(paths: RunPaths) -> None:
    found = observe(paths)
    assert found.status is not None
    assert "\n".join(picture(found.status, NOW_S)).encode()
    assert one_line(found.status)
    assert exit_code(found.status) in {0, 1, 3}
    assert json.loads(encode_status(found.status))
    assert is_wanted(found.record, found.status) in {True, False}
    Policy(_read_told(paths.state / "none")).step(NOW_S, 9, "2026-05-12", found.status)


def ledger_file(content: bytes, folder: Path) -> None:
    paths = _run(folder)
    paths.ledger.write_bytes(content)
    for shown in Source("events", ledger(paths)).all():
        assert event_line(shown.line) is None or event_line(shown.line).isprintable()
        assert msgspec.json.encode(json_line("events", shown.line))
    _reported(paths)


def worker_log_file(content: bytes, folder: Path) -> None:
    paths = _run(folder)
    paths.worker_log.write_bytes(content)
    source = Source("worker", worker_log(paths))
    for shown in [*source.all(), *source.last(5)]:
        assert all(text.isprintable() for text in readable("worker", shown.line, alone=False))
        assert msgspec.json.encode(json_line("worker", shown.line))


def history_file(content: bytes, folder: Path) -> None:
    paths = _run(folder)
    paths.history.write_bytes(content)
    _reported(paths)


def _reported(paths: RunPaths) -> None:
    material = gather(paths, observe(paths).status, NOW_S)
    reckoned = account(material)
    assert "\n".join(screen(material, reckoned)).encode()
    assert page(material, reckoned).encode()
    assert msgspec.json.encode(reckoned.as_document())


def restarts_file(content: bytes, folder: Path) -> None:
    file = folder / "restarts.json"
    file.write_bytes(content)
    budget = read_budget(file)
    for words in (None, Failed(cause=FailureCause.CRASH, message="x", step=7)):
        verdict = judge(Death(exit_status=1, last_words=words), budget, 5, 0.5)
        assert 0 <= verdict.delay_s < 10_000
        assert msgspec.json.encode(verdict.budget)


def told_file(content: bytes, folder: Path) -> None:
    file = folder / "told.json"
    file.write_bytes(content)
    paths = _run(folder)
    policy = Policy(_read_told(file))
    policy.step(NOW_S, 9, "2026-05-12", observe(paths).status)
    assert msgspec.json.encode(policy.told)


def blackbox_file(content: bytes, folder: Path) -> None:
    """`content` is that of one frame, in a block that is whole, among others as they were."""
    file = folder / "blackbox"
    file.write_bytes(b"".join(_block(number, frame) for number, frame in enumerate([_FRAME, content, content], start=1)))
    recording = blackbox.read_blackbox(file)
    found = evidence.Evidence(
        frames=recording.frames, broken=recording.broken, boot="now", now_unix_s=NOW_S, checkpoint_step=3,
        checkpoint_path="/c", checkpoint_unix_s=NOW_S - 900,
    )  # fmt: skip
    verdict = postmortem.judge(found)
    if verdict is not None:
        assert "\n".join([*postmortem.told(found, verdict), *postmortem.last_minute(found.frames)]).encode()


def plan_file(content: bytes, folder: Path) -> None:
    file = folder / "plan.jsonl"
    file.write_bytes(content)
    plan = Plan(file)
    assert all("unreadable" in sentence for sentence in plan.damage)
    if plan._written:
        assert plan.last_change


def model_config(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    _model(folder)


def model_weights(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(_CONFIG)
    (folder / "model.safetensors").write_bytes(content)
    _model(folder)
    try:
        header.decode_header(content[8:], len(content))
    except CheckpointError:
        pass


def _model(folder: Path) -> None:
    try:
        check_model(str(folder))
    except InputError as refused:
        _one_sentence(refused)
    shape = model_shape(str(folder))
    try:
        resolution = resolve(Settings(), {}, MACHINE, shape)
    except SettingsError:
        return
    assert lines(resolution)


def checkpoint_manifest(content: bytes, folder: Path) -> None:
    """`content` is what it says; the seal around it is right."""
    try:
        found = msgspec.json.decode(content, type=manifest.Manifest)
        sealed = manifest.seal(found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        sealed = content
    try:
        assert manifest.unseal(sealed).total_bytes >= 0
    except CheckpointError:
        pass


# --------------------------------------------------------------------------------------------------------------------
# Valid documents


def _old_lines(name: str) -> list[bytes]:
    return (OLD / name).read_bytes().splitlines()


def _run(folder: Path) -> RunPaths:
    """A run's folder with the old state's settings and status, anew."""
    paths = RunPaths("default", folder / "run", folder / "runtime")
    if not paths.state.exists():
        for made in (paths.state, paths.runtime):
            made.mkdir(mode=0o700)
    for name in ("run.json", "status.json"):
        (paths.state / name).write_bytes((OLD / name).read_bytes())
    return paths


_FRAME = msgspec.json.encode(
    blackbox.Frame(
        boot="then",
        at=NOW_S - 1000,
        mono=5000.0,
        pid=4321,
        total_mib=16_000,
        facts=blackbox.Facts(state="running", phase="training", step=4211, heats=(blackbox.Heat(index=0, celsius=70.0),)),
        trace=(blackbox.Memory(100, 7000, 9000, 0.0),),
    )
)


def _block(number: int, content: bytes) -> bytes:
    """A block whose checksum is right, whatever its content is."""
    content = content[: blackbox.BLOCK_BYTES - 18]
    rest = struct.pack("<QH", number, len(content)) + content
    return (b"mbb1" + struct.pack("<I", zlib.crc32(rest)) + rest).ljust(blackbox.BLOCK_BYTES, b"\0")


_CONFIG = json.dumps(
    {
        "model_type": "bert", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 128, "type_vocab_size": 2, "id2label": {"0": "a", "1": "b"},
    }
).encode()  # fmt: skip
_HEADER = (
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    b'"b":{"dtype":"I64","shape":[],"data_offsets":[24,32]}}'
)
_BUDGET = b'{"deaths":2,"durable_step":5,"failed_step":7,"failures":1}'
_TOLD = b'{"run_id":"x","ended":null,"troubles":{"disk":1790000000.0},"sent":[1790000000.0],"held_back":["x"],"digest_day":""}'
_PLAN_LINES = [
    b'{"step":0,"bands":{},"default_tokens":512,"cause":"settings","at_unix_s":1790000000.0}',
]
_MANIFEST = json.dumps(
    {
        "step": 7, "created_unix_s": NOW_S, "metric": 0.5,
        "files": [{"name": "state.json", "bytes": 10, "xxh3_128": "0" * 32}],
    }
).encode()  # fmt: skip


@st.composite
def toml(draw: st.DrawFn) -> bytes:
    """Some of the settings with any values, as somebody might write them."""
    text = []
    for name in draw(st.lists(st.sampled_from(sorted(keys())), min_size=1, max_size=6, unique=True)):
        value = draw(st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(max_size=20))
        written = str(value) if isinstance(value, Raw) else _toml_value(value)
        text.append(f"{name}={written}")
    content = "\n".join(text).encode(errors="replace")
    return draw(bytes_changed([content])) if draw(st.integers(0, 4)) == 0 else content


def _toml_value(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    said = draw(json_changed([_HEADER]))
    length = draw(st.sampled_from([len(said)] * 6 + [0, len(said) + 1, 2**32, 2**63, 2**64 - 1]))
    return length.to_bytes(8, "little") + said + bytes(draw(st.sampled_from([32, 0, 31])))


PARSERS = {
    "settings": Parser(toml(), settings_file, 250),
    "run.json": Parser(json_changed([(OLD / "run.json").read_bytes()]), run_file),
    "status.json": Parser(json_changed([(OLD / "status.json").read_bytes()]), status_file),
    "ledger": Parser(lines_changed(_old_lines("ledger.jsonl")), ledger_file),
    "history": Parser(lines_changed(_old_lines("history.jsonl")), history_file),
    "worker log": Parser(
        lines_changed(
            [
                b'{"time":"2026-05-12T04:31:22.123Z","level":"info","event":"The plan changes","run":"x","from_step":7}',
                b'{"time":"2026-05-12T04:31:22.123Z","event":"step 5"}',
                b'"2026-05-12 04:31:22,123 INFO old"',
            ]
        ),
        worker_log_file,
    ),
    "restarts": Parser(json_changed([_BUDGET]), restarts_file, 200),
    "told": Parser(json_changed([_TOLD]), told_file),
    "black box": Parser(json_changed([_FRAME]), blackbox_file),
    "plan": Parser(lines_changed(_PLAN_LINES), plan_file),
    "config.json": Parser(json_changed([_CONFIG]), model_config),
    "safetensors": Parser(safetensors(), model_weights),
    "manifest": Parser(json_changed([_MANIFEST]), checkpoint_manifest),
}


# --------------------------------------------------------------------------------------------------------------------
# Trying them


@pytest.fixture(autouse=True)
def quiet(logged: list[dict[str, Any]]) -> None:
    """What is logged of damaged lines is not printed."""


def _try(parser: Parser, folder: Path, examples: int, seed: int | None = None) -> None:
    @hypothesis.given(parser.documents)
    @hypothesis.settings(
        max_examples=examples, database=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=seed is None
    )
    def every(document: bytes) -> None:
        began_s = time.process_time()
        parser.use(document, folder)
        assert time.process_time() - began_s < MOST_CPU_S

    (every if seed is None else hypothesis.seed(seed)(every))()


@pytest.mark.parametrize("name", PARSERS)
def test_changed_documents_break_nothing(name: str, tmp_path: Path) -> None:
    """By day the same documents each time; nights try new ones. A failure prints the document and how to repeat it."""
    _try(PARSERS[name], tmp_path, PARSERS[name].examples)


@pytest.mark.nightly
@pytest.mark.parametrize("name", PARSERS)
def test_changed_documents_break_nothing_all_night(name: str, tmp_path: Path) -> None:
    """Half an hour for all of them together."""
    until_s, seed = time.monotonic() + NIGHTLY_S / len(PARSERS), time.time_ns()
    while time.monotonic() < until_s:
        print(f"{name}: seed {seed}")
        _try(PARSERS[name], tmp_path, 1000, seed)
        seed += 1
