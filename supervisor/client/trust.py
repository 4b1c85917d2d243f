"""What a start lets a `memsup.toml` decide that lies in the current folder and may be somebody else's. Pure.

Such a file says what is trained. What something is sent to (`CONTACTS` in `shared/settings.py`), and with which other machines
it is computed (`MACHINES`), which get the data or have their own computed here, it may only propose: it counts if a person
takes it over with `--trust`, once; the run keeps it then. The user's own file, the environment and flags are the user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memsup.shared.loading import Loaded
from memsup.shared.secret import Secret, told_of
from memsup.shared.settings import Key, Settings, keys
from memsup.supervisor.client.errors import RefusedError


def contacts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each setting that has something sent somewhere, and where to, as far as that may be said."""
    for name, key in keys().items():
        value = key.value(settings)
        if key.contacts and value:
            addresses: list[Secret] = value if isinstance(value, list) else [value]
            yield name, ", ".join(dict.fromkeys(map(told_of, addresses)))


def refuse_strangers(loaded: Loaded, known: Settings | None, retry: str) -> None:
    """Raises `RefusedError` where the job's file has something sent, or other machines take part, and nobody has taken that
    over. `known` are the settings of the run as it is, of which that was asked before. It is None where there is no run yet.
    `retry` is the command, as typed.
    """
    proposed = {
        name: key
        for name, key in keys().items()
        if (key.contacts or key.machines)
        and name in loaded.of_job_file
        and key.value(loaded.settings) not in (None, [], key.value(Settings()))
        and (known is None or key.value(known) != key.value(loaded.settings))
    }
    if not proposed:
        return
    sent = "; ".join(f"{to} ({name})" for name, to in contacts(loaded.settings) if name in proposed)
    together = ", ".join(_shown(name, key, loaded.settings) for name, key in proposed.items() if key.machines)
    wants = [f"messages sent to {sent}"] if sent else []
    if together:
        wants.append(f"it computed together with other machines ({together})")
    without = " ".join(f"--set {name}={_unset(key)}" for name, key in proposed.items())
    raise RefusedError(
        f"The {loaded.origins[next(iter(proposed))]} in this folder wants {', and '.join(wants)}. It may be somebody else's, "
        "so nothing is sent anywhere unasked. Go on with one of:",
        more=(f"  {retry} --trust   it is yours", f"  {retry} {without}   without that"),
    )


def _shown(name: str, key: Key, settings: Settings) -> str:
    return name if key.is_secret else f"{name} = {key.value(settings)}"


def _unset(key: Key) -> Any:
    """What a person writes for a setting that is to be as if nobody had set it."""
    default = key.value(Settings())
    return "" if default in (None, []) else str(default).lower()
