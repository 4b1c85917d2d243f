"""`run.json`: what the user asked for, as it was resolved when the run was created, and what they want of it now.

Everything in it must be the same again after a restart for the training to be the same; only `wanted` and
`gentle` change later.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import msgspec

from memsup.shared.files import replace_file
from memsup.shared.messages import PauseMode
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted


class RecordError(Exception):
    """`run.json` cannot be used; the text is one plain sentence with what to do."""


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker was expected to hold at its peak: `held_bytes` always, and so much for each token computed at once."""

    held_bytes: int
    token_bytes: float
    most_tokens: int
    """A step has no more than that."""

    def peak_bytes(self, micro_tokens: int) -> int:
        """With micro-batches of `micro_tokens`."""
        return self.held_bytes + int(self.token_bytes * min(micro_tokens, self.most_tokens))


class RunRecord(msgspec.Struct, kw_only=True):
    run: str
    run_id: str
    created_unix_s: float
    wanted: Wanted
    pause_mode: PauseMode = PauseMode.HOLD
    """How a wanted pause is to be carried out."""
    gentle: bool = False
    """The machine died under it, and nobody has stopped and started it since (`supervisor/footing.py`)."""
    tier: str
    """low, safe or full; `settings.tier` keeps what was asked."""
    tier_reason: str
    settings: Settings
    """With every value that the tier decides filled in."""
    estimate: MemoryEstimate | None = None
    """Of the worker, as `start` made it; None where the model was not known, or for a GPU."""
    command: list[str] | None = None
    """A supervised command in place of the built-in training."""
    command_folder: str | None = None


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RunRecord)


def encode_record(record: RunRecord) -> bytes:
    return msgspec.json.format(_encoder.encode(record), indent=2) + b"\n"


def write_record(path: Path, record: RunRecord) -> None:
    """Raises OSError."""
    replace_file(path, encode_record(record))


def read_record(path: Path) -> RunRecord | None:
    """None where there is no run yet. Raises `RecordError` for a damaged one."""
    try:
        return _decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise RecordError(f"{path} cannot be read ({error}). Start anew with: memsup start --fresh") from None
