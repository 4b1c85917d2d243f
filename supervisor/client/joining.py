"""A second machine's start: what the first one trains, and where its data and model come to lie here.

Covers the settings that follow from what the first machine says, and that machine's own address. What is received and verified
is of `worker/ranks/receive.py`, a process of its own.

What is received lies beside the run until that is made, and in its folder `received` from then on, under the names that it has
on the first machine; a start that was interrupted goes on with the files that are whole.
"""

from __future__ import annotations

import glob
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from memsup.shared.files import replace_file
from memsup.shared.loading import Loaded
from memsup.shared.nodes import (
    Address,
    Described,
    NotReceived,
    OfferedFile,
    Receive,
    Received,
    Told,
    draw_key,
    is_own_network,
    read_address,
    refuse_short_key,
    refuse_strange_network,
)
from memsup.shared.paths import RunPaths, check_private, make_private
from memsup.shared.ranks import refuse_ranks_of_machines
from memsup.shared.record import RunRecord
from memsup.shared.secret import Secret
from memsup.shared.settings import Lora, Nodes, SettingsError, Task, Training
from memsup.supervisor.client.errors import NOT_STARTED, REFUSED, RefusedError
from memsup.supervisor.words import plural, size

RECEIVED = "received"
KEY_FILE = "nodes.key"
_OWN = ("threads", "lanes", "micro_tokens", "ranks", "device", "report_to")
"""What of `training` is each machine's own."""

S = TypeVar("S", bound=msgspec.Struct)


# --------------------------------------------------------------------------------------------------------------------
# The first machine


def with_address(loaded: Loaded) -> Loaded:
    """The settings of a first machine, with its address. Raises `SettingsError` where that is not known, or is not its user's
    own network's.
    """
    nodes = loaded.settings.nodes
    refuse_shown_key(loaded)
    if nodes.count == 1:
        return loaded
    if nodes.join is not None:
        raise SettingsError("nodes.count is for the first machine, and nodes.join for the others: give one of them.")
    if loaded.settings.checkpoint.resume_from is not None:
        raise SettingsError(
            "checkpoint.resume_from names a folder of this machine, which the others do not have: leave it out."
        )
    refuse_ranks_of_machines(loaded.settings)
    host = nodes.address or _only_address()
    found = read_address(host, nodes.port)
    refuse_strange_network(found.host, any_network=nodes.any_network)
    loaded.settings.nodes = msgspec.structs.replace(nodes, address=found.host, port=found.port)
    origins = {"nodes.address": "found", "nodes.port": "found"} | loaded.origins  # a run that goes on may have had another one
    return msgspec.structs.replace(loaded, origins=origins)


def without_machines(loaded: Loaded) -> Loaded:
    """The settings for a command of the user's own, whose launcher is what joins machines. What a `memsup.toml` says of them is
    of the built-in training. Raises `SettingsError` where they were asked for with this command.
    """
    nodes = loaded.settings.nodes
    for key, is_asked in (("nodes.count", nodes.count > 1), ("nodes.join", nodes.join is not None)):
        if is_asked and loaded.origins.get(key) in ("flag", "environment"):
            raise SettingsError(
                f"{key} is for the built-in training. A command's own launcher joins machines: leave it out, and type "
                "memsup start -- torchrun --nnodes … on each of them."
            )
    loaded.settings.nodes = Nodes()
    return loaded


def with_key(nodes: Nodes) -> Nodes:
    """These, with a key, which is drawn where there is none."""
    return nodes if nodes.key is not None or nodes.count == 1 else msgspec.structs.replace(nodes, key=Secret(draw_key()))


def refuse_shown_key(loaded: Loaded) -> None:
    """Raises `SettingsError` for a key that all users of the machine see in its list of processes."""
    if loaded.origins.get("nodes.key") == "flag" and loaded.settings.nodes.key is not None:
        raise SettingsError("nodes.key would be seen in the list of processes: set MEMSUP_NODES_KEY in its place.")


def how_to_join(paths: RunPaths, nodes: Nodes) -> str:
    """What is to be typed on another machine. The key is fetched, and shown nowhere."""
    assert nodes.address is not None
    address, file = Address(nodes.address, nodes.port), str(paths.state / KEY_FILE)
    shown = f"cat {file}"
    if shlex.quote(file) != file:  # two shells read it, that here and that of the first machine
        shown = shlex.quote(f"cat {shlex.quote(file)}")
    more = "" if is_own_network(nodes.address) else " --set nodes.any_network=true"
    return f'MEMSUP_NODES_KEY="$(ssh {nodes.address} {shown})" memsup start --join {address}{more}'


def write_key(paths: RunPaths, nodes: Nodes) -> None:
    """Writes the key where its user can fetch it, and nobody else reads it. Raises OSError."""
    if nodes.count > 1 and nodes.key is not None:
        replace_file(paths.state / KEY_FILE, nodes.key.reveal().encode() + b"\n")


def _only_address() -> str:
    """The one private address that other machines can reach. Raises `SettingsError`."""
    found: list[str] = sorted(
        {
            str(one.address)
            for name, addresses in psutil.net_if_addrs().items()
            for one in addresses
            if one.family.name == "AF_INET" and name != "lo" and is_own_network(one.address)
        }
    )
    if len(found) == 1:
        return found[0]
    what = (
        f"This machine has several private addresses ({', '.join(found)})" if found else "This machine has no private address"
    )
    raise SettingsError(f"{what}: say by which the other machines reach it: --set nodes.address=ADDRESS")


# --------------------------------------------------------------------------------------------------------------------
# The others


def received(paths: RunPaths, loaded: Loaded, say: Callable[[str], None]) -> Loaded:
    """The settings of a run that joins another one: what is trained is the first machine's, limits and folders are this one's.
    Raises `RefusedError` and `SettingsError`.
    """
    settings, own = loaded.settings, loaded.settings.training
    refuse_shown_key(loaded)
    assert settings.nodes.join is not None
    if settings.nodes.count > 1:
        raise SettingsError("nodes.count is for the first machine, and nodes.join for the others: give one of them.")
    refuse_ranks_of_machines(settings)
    address = read_address(settings.nodes.join, settings.nodes.port)
    refuse_strange_network(address.host, any_network=settings.nodes.any_network)
    if settings.nodes.key is None:
        raise RefusedError(
            "The key of the run is missing: the first machine says the whole line when the run is started there, with "
            "MEMSUP_NODES_KEY in front."
        )
    refuse_short_key(settings.nodes.key.reveal())
    draft = _draft(paths)
    say(f"Asking the first machine at {address} …")
    offer = _receive(Receive(address=address.host, port=address.port, key=settings.nodes.key.reveal(), draft=str(draft)), say)
    task, training, lora = (_section(*part) for part in ((offer.task, Task), (offer.training, Training), (offer.lora, Lora)))
    for name in _OWN:
        setattr(training, name, getattr(own, name))
    training.device = own.device if "training.device" in loaded.origins else "cpu"
    settings.task, settings.training, settings.lora = located(task, "", str(draft), offer.files), training, lora
    ours = {name: origin for name, origin in loaded.origins.items() if name.partition(".")[0] not in ("task", "lora")}
    return Loaded(settings=settings, origins=ours, of_job_file=loaded.of_job_file)


def _receive(wanted: Receive, say: Callable[[str], None]) -> Described:
    """Has it received by a process of its own, since nothing here speaks to other machines. Raises `RefusedError`."""
    offer: Described | None = None
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "memsup.worker.ranks.receive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(wanted))
        process.stdin.close()
        for line in process.stdout:
            match msgspec.json.decode(line, type=Told):
                case Described() as offer:
                    say(f"Run {offer.run!r} of {offer.machine}: {_sum(offer.files)}.")
                case NotReceived(why=why, is_bad=is_bad):
                    raise RefusedError(why, REFUSED if is_bad else NOT_STARTED)
                case Received() if offer is not None:
                    return offer
    raise RefusedError(f"What receives data and model ended with exit code {process.returncode}.", NOT_STARTED)


def refuse_own_run(record: RunRecord | None, loaded: Loaded) -> None:
    """Raises `RefusedError` where a run that this machine trains by itself would become a part of another one's."""
    nodes = loaded.settings.nodes
    if record is not None and nodes.join is not None and record.settings.nodes.join is None:
        raise RefusedError(
            f"Run {record.run!r} is this machine's own. Join under another name: memsup start --run NAME --join {nodes.join}"
        )


def move_in(paths: RunPaths, record: RunRecord) -> None:
    """Puts what was received into the run's own folder, which is empty before. Raises `RefusedError`."""
    if record.settings.nodes.join is None or not (draft := _draft_of(paths)).exists():
        return
    target = paths.state / RECEIVED
    try:
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    except OSError as error:
        raise RefusedError(f"{target} cannot be made: {error.strerror}. Move it away, then start again.") from None
    record.settings.task = located(record.settings.task, str(draft), str(target))


def located(task: Task, before: str, after: str, files: list[OfferedFile] | None = None) -> Task:
    """The task with its data and model below `after`, in place of below `before`. With `files`, only where some of them are
    there: a model at a hub stays that.
    """

    def move(value: str) -> str:
        if not value.startswith("/") or not value.startswith(before):
            return value
        below = value.rstrip("/") + "/"
        is_sent = files is None or glob.has_magic(value) or any((file.path + "/").startswith(below) for file in files)
        return after + value.removeprefix(before) if is_sent else value

    def move_all(value: str | list[str] | None) -> str | list[str] | None:
        return [move(one) for one in value] if isinstance(value, list) else None if value is None else move(value)

    return msgspec.structs.replace(
        task,
        model=None if task.model is None else move(task.model),
        train=move_all(task.train),
        eval=move_all(task.eval),
    )


def _section(content: dict[str, object], kind: type[S]) -> S:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise RefusedError(
            f"The first machine trains what this memsup does not know ({error}): have the same version on both."
        ) from None


def _sum(files: list[OfferedFile]) -> str:
    return f"{plural(len(files), 'file')}, {size(sum(file.size_bytes for file in files))} of data and model"


def _draft_of(paths: RunPaths) -> Path:
    return paths.state.parent / f".joining-{paths.name}"


def _draft(paths: RunPaths) -> Path:
    draft = _draft_of(paths)
    make_private(draft.parent)
    make_private(draft)
    check_private(draft)
    return draft
