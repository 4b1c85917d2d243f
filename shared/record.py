"""What `run.json` holds: what the user asked for, resolved when the run was created, and what they want of it now. Pure.

Everything in it must be the same again after a restart for the training to be the same. What may change later: `wanted`,
`pause_mode`, `gentle`, `queued`, `waived_unix_s`, and of the settings those that change no training. `run_file.py` reads and
writes it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from memsup.shared.messages import PauseMode
from memsup.shared.secret import Secret, as_secret
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted


class RecordError(Exception):
    """`run.json` cannot be used; the text is one plain sentence with what to do."""


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker was expected to hold at its peak: `held_bytes`, and `token_bytes` for each token computed at once."""

    held_bytes: int
    token_bytes: float
    most_tokens: int
    """The tokens of the largest step; no micro-batch can have more."""

    def peak_bytes(self, micro_tokens: int) -> int:
        """The bytes at the peak with micro-batches of `micro_tokens`."""
        return self.held_bytes + int(self.token_bytes * min(micro_tokens, self.most_tokens))


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """A run that another one waits for."""

    run: str
    run_id: str
    """Which run of that name: one that is begun in its place is not waited for."""
    must_finish: bool = False
    """Whether the one that waits begins only if this one finishes, and not where it fails or is stopped."""


class NotBefore(msgspec.Struct, frozen=True, kw_only=True):
    """The instant before which a run does not begin."""

    at_unix_s: float
    text: str
    """The same as a local time, for people: `Sat 23:00`."""


class CommandEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of the environment that a command was first started with (`supervisor/decide/variables.py`)."""

    values: dict[str, str]
    secrets: list[str]
    """The names of variables that look like secrets, whose values are not remembered."""


class RunRecord(msgspec.Struct, kw_only=True):
    """The content of `run.json`."""

    run: str
    run_id: str
    created_unix_s: float
    wanted: Wanted
    pause_mode: PauseMode = PauseMode.HOLD
    """How a pause that is wanted is to be carried out."""
    gentle: bool = False
    """Whether the machine died under the run, and nobody has stopped and started it since
    (`supervisor/decide/after_power_loss.py`)."""
    queued: list[Awaited] | None = None
    """The runs that it still waits for before it begins; where none is left, for its time, its hours, or room beside others. It
    is None once it has begun, and not outside of its hours, when it takes its place behind others."""
    not_before: NotBefore | None = None
    """When it may begin, of a run that is queued. It is None where the time does not matter, or has come."""
    waived_unix_s: float | None = None
    """When a person had it go on whatever its hours say, as it does until they end next (`supervisor/decide/run/hours.py`). It
    is None where nobody did."""
    tier: str
    """The tier that was chosen: low, safe or full; `settings.tier` keeps what was asked."""
    tier_reason: str
    settings: Settings
    """The settings, with every value that the tier decides filled in."""
    estimate: MemoryEstimate | None = None
    """What the worker was expected to hold, as `start` estimated it. None means that the model was not known, or that it is for
    a GPU."""
    command: list[str] | None = None
    """The command that is supervised. None means the built-in training."""
    command_folder: str | None = None
    attaches: bool = True
    """Whether a program of the command that has a Trainer is attached without calling memsup (`fence/program.py`)."""
    off_card_pids: list[int] | None = None
    """The processes of the command whose GPU memory the driver was asked to move into RAM, and has not brought back yet. It is
    None where there are none (`supervisor/decide/run/card.py`)."""
    command_environment: CommandEnvironment | None = None
    """It is None for the built-in training, and of runs that were begun before it was remembered."""
    command_umask: Annotated[int, msgspec.Meta(ge=0, le=0o777)] | None = None
    """To whom the files that the command makes are closed: as for whoever started it (umask(2)), but never to that user. None:
    to all others."""


def _written(value: Any) -> str:
    """A secret's text, for `run.json`, which nobody else can read (`files.py`) and from which the supervisor has it."""
    if isinstance(value, Secret):
        return value.reveal()
    raise NotImplementedError(f"run.json cannot hold a {type(value).__name__}")


_encoder = msgspec.json.Encoder(enc_hook=_written)
_decoder = msgspec.json.Decoder(RunRecord, dec_hook=as_secret)
_settings_decoder = msgspec.json.Decoder(Settings, dec_hook=as_secret)


def encode_record(record: RunRecord) -> bytes:
    """The bytes of `run.json`, indented for people, with the secrets in it."""
    return msgspec.json.format(_encoder.encode(record), indent=2) + b"\n"


def decode_record(document: bytes) -> RunRecord:
    """What the bytes of `run.json` hold. Raises `msgspec.DecodeError` and UnicodeDecodeError."""
    return _decoder.decode(document)


def encode_settings(settings: Settings) -> bytes:
    """The settings for the supervisor's socket, which only their user can reach, with the secrets in them."""
    return _encoder.encode(settings)


def decode_settings(document: bytes) -> Settings:
    """What `encode_settings` wrote. Raises `msgspec.DecodeError` and UnicodeDecodeError."""
    return _settings_decoder.decode(document)
