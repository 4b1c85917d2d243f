"""Whatever lies in a file that memsup reads: it is used as far as it makes sense, or refused in a sentence; nothing breaks.

For each parser of files there are valid documents, a way to change them (`kit/mutation.py`), and what the product does with
them, to the last word that a person sees. What it has found is a case of its own in the tests of its room.
"""

from __future__ import annotations

import bz2
import contextlib
import fcntl
import gzip
import hashlib
import json
import lzma
import math
import os
import socket
import struct
import time
import typing
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

from memsup import packing, places, zmtp
from memsup import store as programs
from memsup.about import NotAttached, Seam
from memsup.checkpoint import header, manifest
from memsup.checkpoint.errors import CheckpointError
from memsup.checkpoint.reading import read_json
from memsup.link import Link, Told
from memsup.manifest import END, PROGRAMS_SEAL
from memsup.shared import messages as m
from memsup.shared.data.chat_check import check_dialogues
from memsup.shared.data.check import check_data
from memsup.shared.data.errors import InputError
from memsup.shared.data.tags_check import check_tags
from memsup.shared.loading import load
from memsup.shared.messages import Failed, FailureCause
from memsup.shared.model.folder import ModelSource, ModelSummary, check_model
from memsup.shared.paths import RunPaths
from memsup.shared.record import RecordError, RunRecord, decode_record, encode_record
from memsup.shared.run_file import OWED, read_record, settle
from memsup.shared.settings import Settings, SettingsError, Task, keys
from memsup.shared.status import Status, Wanted, encode_status
from memsup.store import Damaged, verified
from memsup.supervisor.cli.layout import laid_out
from memsup.supervisor.cli.logs import Source, event_line, json_line, readable
from memsup.supervisor.cli.look import exit_code
from memsup.supervisor.cli.orders import seen_saved
from memsup.supervisor.cli.picture import one_line, picture
from memsup.supervisor.client.contact import observe
from memsup.supervisor.client.task import model_shape
from memsup.supervisor.daemon import claims
from memsup.supervisor.daemon.systemd import is_wanted
from memsup.supervisor.decide.claims import Claim
from memsup.supervisor.decide.heat import HeatControl, HeatDecision
from memsup.supervisor.decide.readings import DiskReading, GpuReading, Machine, MemoryReading
from memsup.supervisor.decide.run.actions import Record, SaveBudget
from memsup.supervisor.decide.run.lifecycle import Lifecycle
from memsup.supervisor.decide.run.restarts import Death, judge
from memsup.supervisor.decide.tier_lines import lines, notes
from memsup.supervisor.decide.tiers import resolve
from memsup.supervisor.record import blackbox, evidence, postmortem
from memsup.supervisor.record import ledger as ledger_of
from memsup.supervisor.record.earlier_life import read_budget
from memsup.supervisor.record.history import Recorder, sample_of
from memsup.supervisor.record.output import ledger, worker_log
from memsup.supervisor.record.status import Surroundings, status_of
from memsup.supervisor.report.account import account
from memsup.supervisor.report.gather import gather
from memsup.supervisor.report.page import page
from memsup.supervisor.report.terminal import screen
from memsup.supervisor.sense.gpu import frames
from memsup.supervisor.sense.gpu.caps import PowerCaps
from memsup.supervisor.sense.gpu.devices import heat_sources, reading_of
from memsup.supervisor.tell.messenger import Messenger
from memsup.supervisor.tell.notices import _read_told
from memsup.supervisor.tell.policy import Policy
from memsup.supervisor.words import gpu_line
from memsup.training import place_in
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
    examples: int = 150
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


def data_file(name: str) -> Callable[[bytes, Path], None]:
    """As data to train on, under that name."""

    def use(content: bytes, folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        try:
            found = check_data(str(folder / name), budget_s=2)
        except InputError as refused:
            _one_sentence(refused)
            return
        assert found.rows == sum(found.labels.values())

    return use


def tagged_file(name: str) -> Callable[[bytes, Path], None]:
    """As sentences with tags to train on, under that name."""

    def use(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        try:
            found, _, verdict = check_tags(Task(kind="token-classification", train=str(folder / name)), budget_s=2)
        except InputError as refused:
            _one_sentence(refused)
            return
        assert found.rows
        for doubt in verdict.doubts:
            assert "\n" not in doubt.what

    return use


def chat_file(name: str) -> Callable[[bytes, Path], None]:
    """As dialogues to train on, under that name."""

    def use(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        model = ModelSummary(source=ModelSource.HUB, folder=None, config=None, has_tokenizer=True)
        try:
            found, _ = check_dialogues(Task(kind="causal-lm", model="m", train=str(folder / name)), model, budget_s=2)
        except InputError as refused:
            _one_sentence(refused)
            return
        assert found.rows

    return use


def saved_dataset(content: bytes, folder: Path) -> None:
    """`content` describes a folder that the datasets library saved."""
    for name in ("state.json", "dataset_info.json", "dataset_dict.json"):
        (folder / name).write_bytes(content)
        try:
            check_data(str(folder), budget_s=2)
        except InputError as refused:
            _one_sentence(refused)


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
    assert "\n".join(laid_out(picture(found.status, NOW_S), None)).encode()
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
    assert "\n".join(laid_out(screen(material, reckoned), None)).encode()
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


def claim_file(content: bytes, folder: Path) -> None:
    """Another run that lives has it, and what it may take changes what is left for this one."""
    paths, other = _run(folder), RunPaths("other", folder / "other", folder / "runtime")
    other.state.mkdir(mode=0o700, exist_ok=True)
    other.claim.write_bytes(content)
    fd = os.open(other.state, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        found = claims.beside(paths)
        paths.claim.write_bytes(content)
        kept = claims.beside(paths, keep_own=True)
    finally:
        os.close(fd)
    assert msgspec.json.encode(found.others)
    for beside in (found, kept):
        try:
            resolution = resolve(Settings(), {}, MACHINE, None, beside)
        except SettingsError as refused:
            _one_sentence(refused)
        else:
            assert all("\n" not in line for line in notes(resolution))
            assert lines(resolution)


def owed_record(content: bytes, folder: Path) -> None:
    """What a supervisor left in the runtime folder for a state folder whose disk took nothing."""
    paths = _run(folder)
    (paths.runtime / OWED).write_bytes(content)
    settle(paths)
    assert read_record(paths.record) is not None


def gpu_answer(content: bytes, folder: Path) -> None:
    """What the probe says that a driver says, as JSON; the driver's word is as good as anybody's."""
    try:
        seen = frames.decode_answer(msgspec.msgpack.encode(msgspec.json.decode(content)))
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError, OverflowError):
        return
    if not isinstance(seen, frames.Seen):
        return
    before: dict[int, GpuReading] = {}
    for now_s in (10.0, 11.0):
        for device in seen.devices:
            before[device.index] = reading_of(device, now_s, fully=seen.fully, before=before.get(device.index))
    gpus = tuple(before.values())
    decision = HeatControl().step(11.0, heat_sources(gpus))
    assert 0 <= decision.duty_fraction <= 1
    shown = _status(_life(), gpus=gpus, heat=decision)
    assert "\n".join(laid_out(picture(shown, NOW_S), None)).encode()
    assert all(gpu_line(gpu) for gpu in gpus)


def report(content: bytes, folder: Path) -> None:
    """What a worker says, as JSON: through the lifecycle to the status, the ledger, the history and the page."""
    try:
        said = m.decode_for_supervisor([m.PROTOCOL, msgspec.msgpack.encode(msgspec.json.decode(content))])
    except (m.BadFrameError, msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError, OverflowError):
        return
    paths, life = _run(folder), _life(is_command=len(content) % 2 == 1)
    actions = [*life.on_report(3.0, said), *life.on_tick(5.0)]
    shown = [_status(life)]
    actions += life.on_exit(6.0, 1, 0)
    shown += [_status(life)]
    ledger_lines = [
        ledger_of.line(action, at=NOW_S, mono=6.0, boot="b", state="running", step=life.progress.step, memory=MEMORY, disk=DISK)
        for action in actions
        if isinstance(action, Record)
    ]
    paths.ledger.write_bytes(b"".join(ledger_lines))
    recorder = Recorder(NOW_S)
    points = [recorder.note(sample_of(status, at=NOW_S + n, mono=5.0 + n, boot="b")) for n, status in enumerate(shown)]
    paths.history.write_bytes(b"".join(filter(None, [*points, recorder.rest()])))
    for status in shown:
        paths.status.write_bytes(encode_status(status))
        _shown(paths)
    assert all(msgspec.json.encode(action.budget) for action in actions if isinstance(action, SaveBudget))
    _reported(paths)


def reply(content: bytes, folder: Path) -> None:
    """What comes from the control socket, whoever listens there."""
    try:
        packed = msgspec.msgpack.encode(msgspec.json.decode(content))
    except (msgspec.DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError, OverflowError):
        packed = content
    try:
        found = m.decode_reply([m.PROTOCOL, packed])
    except m.BadFrameError:
        return
    assert seen_saved(_run(folder), found).ok in {True, False}


def order(content: bytes, folder: Path) -> None:
    """What a program of a person's own is told, whoever listens on the supervisor's socket."""
    try:
        packed = packing.pack(json.loads(content))
    except (ValueError, RecursionError, OverflowError):
        packed = content
    link, theirs = an_open_link()
    with theirs:
        theirs.sendall(zmtp.opening(b"ROUTER") + zmtp.message([m.PROTOCOL, packed]) + content)
        link._receive()
    link._receive()


def an_open_link() -> tuple[Link, socket.socket]:
    """A program's link whose thread does not run, and the other end of its connection."""
    link = Link(Told('{"socket":"/s","run_id":"r","checkpoints":"/c","every_s":null,"keep":2}'))
    link._socket, theirs = socket.socketpair()
    link._socket.setblocking(False)
    return link, theirs


def wire(content: bytes, folder: Path) -> None:
    """In one piece or byte by byte it is the same messages, and no more of them than there were bytes for."""

    def read(pieces: list[bytes]) -> list[list[bytes]]:
        incoming, messages = zmtp.Incoming(1 << 12), []
        for piece in pieces:
            incoming.feed(piece)
            try:
                while (parts := incoming.next_message()) is not None:
                    messages.append(parts)
            except zmtp.ZmtpError:
                break
        return messages

    messages = read([content])
    assert messages == read([content[at : at + 1] for at in range(len(content))])
    assert sum(len(part) for parts in messages for part in parts) <= len(content)
    for parts in messages:
        for part in parts:
            with contextlib.suppress(packing.PackingError):
                packing.unpack(part)


def program_place(content: bytes, folder: Path) -> None:
    (folder / places.PLACE).write_bytes(content)
    found = place_in(str(folder))
    if found is not None:
        assert isinstance(found.step, int)
        assert all(isinstance(word, str) for word in (found.run_id, found.training, *found.program))


def program_checkpoint(content: bytes, folder: Path) -> None:
    """A manifest that somebody has written who knows how it is sealed."""
    checkpoint = folder / "step-00000003"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model.json").write_bytes(b"{}")
    covered = content.rstrip(b"} \n") + b",\n" + PROGRAMS_SEAL.encode()
    sealed = covered + hashlib.sha256(covered).hexdigest().encode() + END.encode()
    (checkpoint / "manifest.json").write_bytes(sealed)
    try:
        assert verified(str(checkpoint), 3).step == 3
    except Damaged as damage:
        _one_sentence(damage)
    except programs.CheckpointError:
        pass


def sender_answer(content: bytes, folder: Path) -> None:
    """A line of the sender's, on whose output a plugin of somebody's may print as well."""
    messenger = Messenger([], None)
    messenger._asked = {1: False, 2: True}
    for line in content.splitlines():
        sent = messenger._answered(line)
        assert sent is None or isinstance(sent.ok, bool)


def power_record(content: bytes, folder: Path) -> None:
    file = folder / "power.json"
    file.write_bytes(content.replace(b"BOOT", Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()))
    assert PowerCaps(file).apply(frames.Cap(ask_id=1, watts={}), {}).refused == {}
    PowerCaps(file).restore_all({})


def checkpoint_json(content: bytes, folder: Path) -> None:
    (folder / "state.json").write_bytes(content)
    try:
        found: dict[str, Any] = read_json(folder, "state.json", dict[str, Any])
    except CheckpointError as refused:
        _one_sentence(refused)
    else:
        assert isinstance(found, dict)


def shard_index(content: bytes, folder: Path) -> None:
    try:
        assert all(header.decode_index(content).values()) in {True, False}
    except CheckpointError as refused:
        _one_sentence(refused)


def _life(*, is_command: bool = False) -> Lifecycle:
    """A run whose worker has said Hello and trains: the built-in one, or an attached program."""
    life = Lifecycle(
        wanted=Wanted.RUNNING, pause_mode=m.PauseMode.HOLD, run="default", run_id="r", lease_s=10.0, memory_limit_bytes=1 << 30,
        is_command=is_command,
    )  # fmt: skip
    life.on_start(0.0, leftover=False)
    life.on_spawned(0.0)
    life.on_report(1.0, m.Hello(pid=42, run_id="r", program=_ABOUT if is_command else None))
    life.on_report(2.0, _HEARTBEAT)
    return life


def _status(life: Lifecycle, gpus: tuple[GpuReading, ...] = (), heat: HeatDecision | None = None) -> Status:
    around = Surroundings(
        now_unix_s=NOW_S, since_unix_s=NOW_S - 9, pid=1, worker_pid=2, memory=MEMORY, disk=DISK, limit_bytes=1 << 30,
        fence_kind="rlimit", fence_bytes=1 << 30, fence_reason="", gpus=gpus, gpu_note=None, temperatures=(),
        heat=heat or HeatDecision(), last_action=None, worst_stall_s=0.0, recent_stall_s=0.0, troubles=(), own_errors=0,
        supervisor_log="/x", records_lost=0, why_lost=None, disk_floor_bytes=0, undead=0,
    )  # fmt: skip
    return status_of(_record(), life, around)


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


MEMORY = MemoryReading(at_s=2.0, ram_total_bytes=16 << 30, ram_available_bytes=8 << 30, worker_bytes=1 << 28)
DISK = DiskReading(at_s=2.0, free_bytes=1 << 40)
_NOTE = m.CheckpointNote(path="/c/step-3", step=3, at_unix_s=NOW_S, verified=True, save_s=0.1, size_bytes=1 << 20)
_HEARTBEAT = m.Heartbeat(
    progress=m.Progress(
        phase=m.Phase.TRAINING, ticks=1, epoch=0.1, step=5, total_steps=9, samples=8, loss=0.5, samples_per_s=9.0, eta_s=6.0
    ),
    batch=m.BatchShape(effective=16, micro_tokens=1024, micro_rows=8),
    memory=m.WorkerMemory(resident_bytes=1, cuda_allocated_bytes=None, cuda_reserved_bytes=None, data_limit_bytes=None),
    checkpoint=_NOTE,
    digest="d",
)
_ABOUT = m.About(seam=Seam.CALLS, training="1", saves=True, cuts=False, not_cut=None, detail="x")
_REPORTS: list[m.Report] = [
    msgspec.structs.replace(_HEARTBEAT, progress=msgspec.structs.replace(_HEARTBEAT.progress, step=6, ticks=2)),
    m.OutOfMemory(where="forward", device="cpu", step=5, micro_tokens_before=64, micro_tokens_after=32, detail="x"),
    m.Finished(model_path="/m", metrics={"accuracy": 0.9, "majority_accuracy": 0.5}, steps=9, samples=80),
    m.Failed(m.FailureCause.CRASH, "x", "trace", 5, 1 << 30),
    m.Decided(m.DecisionKind.CHECKPOINT_USED, "x", "/c/step-3", 3, 2),
    m.Leaving(reason="x", checkpoint=_NOTE),
    m.Hello(pid=12, run_id="r", program=_ABOUT),
    m.Described(program=_ABOUT),
    m.NotAttachedReport(pid=12, run_id="r", why=NotAttached.OTHER_RUN, detail="x"),
    m.Accepted(order_id=1),
    m.Done(order_id=1, detail="x", checkpoint=_NOTE, micro_tokens=64),
    m.OrderFailed(order_id=1, detail="x"),
    m.StateGivenUp(step=5),
]
assert {type(said) for said in _REPORTS} == set(typing.get_args(m.AnyReport))
_ORDERS: list[m.ToWorker] = [
    m.Welcome(run_id="r", lease_s=30.0, memory_limit_bytes=1 << 30, micro_tokens_limit=None, deaths=2),
    m.Lease(lease_s=30.0),
    m.KeepState(every_s=20.0),
    m.Checkpoint(order_id=1, reason="x"),
    m.LimitMicroBatch(order_id=2, reason="x", micro_tokens=64, halve=True, may_grow=False),
    m.LimitMemory(order_id=3, reason="x", device_bytes=1 << 30),
    m.Pace(order_id=4, reason="x", duty_fraction=0.5),
    m.Pause(order_id=5, mode=m.PauseMode.HOLD, reason="x"),
    m.Resume(order_id=6, reason="x"),
    m.Stop(order_id=7, reason="x", checkpoint=True),
]
assert {type(said) for said in _ORDERS} == set(typing.get_args(m.ToWorker))
_PLACE = {
    "run_id": "r", "program": ["/x/loop.py", "--fast"], "step": 3, "epoch": 0, "in_epoch": 3, "is_complete": False,
    "begun_with": None, "generators": {"random": [3, [1, 2], None]}, "training": "1", "offset": 2, "trained_s": 1.5,
}  # fmt: skip
_DEVICE = frames.Device(
    index=0, uuid="GPU-a", name="MX330", total_bytes=10 << 30, free_bytes=4 << 30, processes=[(7, 1 << 30)], temperature_c=70.0,
    margin_c=20.0, slowdown_margin_c=-2.0, shutdown_margin_c=-5.0, slowdown_threshold_c=93.0, shutdown_threshold_c=98.0,
    power_w=120.0, power_limit_w=200.0, power_least_w=100.0, power_default_w=200.0, slowed_by_heat=False, xids=[13],
)  # fmt: skip
_SEEN = frames.Seen(ask_id=1, fully=True, devices=[_DEVICE, msgspec.structs.replace(_DEVICE, index=1)])
_CLAIM = Claim(
    run="other", ram_bytes=4 << 30, reserve_bytes=1 << 30, on_gpu=True, needs_bytes=1 << 29, run_id="r", checkpoints="/c"
)
_REPLY = m.Reply(request_id=1, ok=True, text="Done.", status_json=b"{}", checkpoint_path="/c/step-3", freed_ram_bytes=1)
_POWER = b'{"boot":"BOOT","devices":{"GPU-a":{"original_mw":200000,"ours_mw":[150000],"wanted_mw":{"17 4711":150000}}}}'
_INDEX = b'{"metadata":{"total_size":32},"weight_map":{"a":"m-00001-of-00002.safetensors","b":"m-00002-of-00002.safetensors"}}'


_WIRE = zmtp.opening(b"DEALER") + b"".join(
    zmtp.message([m.PROTOCOL, packing.pack(json.loads(msgspec.json.encode(said)))]) for said in _ORDERS[:3]
)


def _programs_manifest() -> bytes:
    files = [{"name": "model.json", "bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}]
    return json.dumps(
        {"format": "memsup-checkpoint-2", "step": 3, "created_unix_s": 1.0, "metric": None, "files": files}
    ).encode()


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


_ROWS = [{"text": f"the room was number {number}, 很好", "label": "ab"[number % 2]} for number in range(12)]
_CSV = b"".join(f"{row['text']},{row['label']}\n".encode() for row in [{"text": "text", "label": "label"}, *_ROWS])


_FEATURES = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
_SAVED = json.dumps(
    {
        "_data_files": [{"filename": "data-0.arrow"}], "_indices_data_files": None, "features": _FEATURES,
        "splits": ["train", "test"],
    }
).encode()  # fmt: skip


def _packed() -> list[bytes]:
    import pyarrow

    zstd = bytes(pyarrow.Codec("zstd").compress(_CSV, asbytes=True))
    return [gzip.compress(_CSV), bz2.compress(_CSV), lzma.compress(_CSV), zstd]


def _arrow() -> bytes:
    import pyarrow

    said = json.dumps({"info": {"features": _FEATURES}})
    table = pyarrow.Table.from_pylist(_ROWS).replace_schema_metadata({"huggingface": said})
    out = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return bytes(out.getvalue())


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    said = draw(json_changed([_HEADER]))
    length = draw(st.sampled_from([len(said)] * 6 + [0, len(said) + 1, 2**32, 2**63, 2**64 - 1]))
    return length.to_bytes(8, "little") + said + bytes(draw(st.sampled_from([32, 0, 31])))


_TAGGED = [b"-DOCSTART- -X- O", b"", b"Anna NNP B-PER", b"Berg NNP I-PER", b"saw VBD O", b"", b"# id 5", b"Rome NNP S-LOC"]
_SLASHED = "国家/n 主席/n 江/nr 泽民/nr\n[a/b c/d]e 1/m\n"
_LISTS = [{"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}, {"tokens": "in Rome", "ner_tags": "O B-LOC"}]
_SPANS = [{"text": "in Rome", "entities": [{"start": 3, "end": 7, "label": "LOC", "text": "Rome"}, [0, 2, "X"]]}] * 2
_SAID = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": [{"type": "text", "text": "Me."}]}]
_DIALOGUES = [
    {"messages": _SAID, "system": "Be kind."},
    {"messages": json.dumps(_SAID)},
    {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]},
    {"prompt": _SAID[:1], "completion": _SAID[1:]},
    {"instruction": "Add.", "input": "1 1", "output": 2, "system": "Be brief."},
    {"text": "Once upon a time."},
]
PARSERS = {
    "settings": Parser(toml(), settings_file, 700),
    "run.json": Parser(json_changed([(OLD / "run.json").read_bytes()]), run_file),
    "status.json": Parser(json_changed([(OLD / "status.json").read_bytes()]), status_file, 250),
    "ledger": Parser(lines_changed(_old_lines("ledger.jsonl")), ledger_file, 250),
    "history": Parser(lines_changed(_old_lines("history.jsonl")), history_file, 250),
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
    "restarts": Parser(json_changed([_BUDGET]), restarts_file, 900),
    "told": Parser(json_changed([_TOLD]), told_file),
    "black box": Parser(json_changed([_FRAME]), blackbox_file),
    "plan": Parser(lines_changed(_PLAN_LINES), plan_file),
    "a table": Parser(bytes_changed([_CSV, _CSV.decode().encode("utf-16"), b"sep=;\n" + _CSV]), data_file("a.csv")),
    "JSON lines": Parser(lines_changed([json.dumps(row).encode() for row in _ROWS]), data_file("a.jsonl")),
    "an array": Parser(json_changed([json.dumps(_ROWS, indent=1).encode()]), data_file("a.json")),
    "columns of words": Parser(bytes_changed([b"\n".join(_TAGGED)]), tagged_file("a.conll")),
    "words with slashes": Parser(bytes_changed([_SLASHED.encode()]), tagged_file("a.txt")),
    "lists of tags": Parser(lines_changed([json.dumps(row).encode() for row in _LISTS]), tagged_file("a.jsonl")),
    "spans": Parser(json_changed([json.dumps(_SPANS, indent=1).encode()]), tagged_file("a.json")),
    "dialogues": Parser(json_changed([json.dumps([row] * 3).encode() for row in _DIALOGUES]), chat_file("a.json"), 250),
    "lines of dialogues": Parser(lines_changed([json.dumps(row).encode() for row in _DIALOGUES[:2]]), chat_file("a.jsonl")),
    "packed": Parser(st.deferred(lambda: bytes_changed(_packed())), data_file("packed.csv")),
    "Arrow": Parser(st.deferred(lambda: bytes_changed([_arrow()])), data_file("a.arrow")),
    "a saved data set": Parser(json_changed([_SAVED]), saved_dataset),
    "config.json": Parser(json_changed([_CONFIG]), model_config),
    "safetensors": Parser(safetensors(), model_weights),
    "manifest": Parser(json_changed([_MANIFEST]), checkpoint_manifest),
    "claim": Parser(json_changed([msgspec.json.encode(_CLAIM)]), claim_file),
    "owed record": Parser(json_changed([(OLD / "run.json").read_bytes()]), owed_record),
    "GPU probe": Parser(json_changed([msgspec.json.encode(_SEEN)]), gpu_answer),
    "reports": Parser(json_changed([msgspec.json.encode(said) for said in _REPORTS]), report, 250),
    "replies": Parser(json_changed([msgspec.json.encode(_REPLY)]), reply),
    "sender": Parser(lines_changed([b'{"id":1,"ok":true,"text":"x"}', b'{"id":2,"ok":false,"text":"y"}']), sender_answer),
    "power limits": Parser(json_changed([_POWER]), power_record),
    "checkpoint's state": Parser(json_changed([_MANIFEST]), checkpoint_json),
    "index of shards": Parser(json_changed([_INDEX]), shard_index),
    "orders": Parser(json_changed([msgspec.json.encode(said) for said in _ORDERS]), order, 250),
    "frames": Parser(bytes_changed([_WIRE]), wire, 900),
    "a program's place": Parser(json_changed([json.dumps(_PLACE).encode()]), program_place),
    "a program's checkpoint": Parser(st.deferred(lambda: json_changed([_programs_manifest()])), program_checkpoint),
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
