"""What a start lets a `memsup.toml` decide that lies in the current folder and may be somebody else's. Pure.

Such a file says what is trained. What something is sent to (`CONTACTS` in `shared/settings.py`) it may only propose: it
counts if a person takes it over with `--trust`, once; the run keeps it then. The user's own file, the environment and flags
are the user's.
"""

from __future__ import annotations

from collections.abc import Iterator

from memsup.shared.loading import Loaded
from memsup.shared.secret import Secret, told_of
from memsup.shared.settings import Settings, keys
from memsup.supervisor.client.errors import RefusedError


def contacts(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each setting that has something sent somewhere, and where to, as far as that may be said."""
    for name, key in keys().items():
        value = key.value(settings)
        if key.contacts and value:
            addresses: list[Secret] = value if isinstance(value, list) else [value]
            yield name, ", ".join(dict.fromkeys(map(told_of, addresses)))


def refuse_strangers(loaded: Loaded, known: Settings | None, retry: str) -> None:
    """Raises `RefusedError` where the job's file has something sent that nobody has taken over. `known` are the settings of the
    run as it is, of which that was asked before. It is None where there is no run yet. `retry` is the command, as typed.
    """
    proposed = [
        (name, to)
        for name, to in contacts(loaded.settings)
        if name in loaded.of_job_file and (known is None or keys()[name].value(known) != keys()[name].value(loaded.settings))
    ]
    if not proposed:
        return
    without = " ".join(f"--set {name}=" for name, _ in proposed)
    raise RefusedError(
        f"The {loaded.origins[proposed[0][0]]} in this folder wants messages sent to "
        + "; ".join(f"{to} ({name})" for name, to in proposed)
        + ". It may be somebody else's, so nothing is sent there unasked. Go on with one of:",
        more=(f"  {retry} --trust   it is yours", f"  {retry} {without}   without these messages"),
    )
