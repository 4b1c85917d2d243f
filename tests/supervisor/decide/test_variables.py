"""A command that goes on has the variables of its first start, where they are not set now; no secret is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.record import CommandEnvironment
from memsup.supervisor.decide.variables import MOST_BYTES, compared, joined, to_keep

FIRST = {
    "SEED": "2",
    "DATA_DIR": "/data",
    "OMP_NUM_THREADS": "4",
    "PATH": "/home/me/venv/bin:/bin",
    "VIRTUAL_ENV": "/home/me/venv",
    "TERM": "xterm",
    "SSH_TTY": "/dev/pts/3",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "MEMSUP_LIMITS_RAM": "2GiB",
    "_MEMSUP_LINK": "{}",
    "WANDB_API_KEY": "0123",
    "HF_TOKEN": "hf_x",
    "HTTP_PROXY": "http://me:mine@proxy:8080",
    "NOT_TEXT": "\udcff",
}


def test_what_is_set_no_more_is_kept_and_what_is_set_now_counts() -> None:
    kept = to_keep(FIRST)
    now = {"PATH": "/bin", "TERM": "dumb", "SEED": "3", "HOME": "/home/me"}
    found = joined(kept, now)
    assert found == now | {
        "DATA_DIR": "/data",
        "OMP_NUM_THREADS": "4",
        "PATH": "/home/me/venv/bin:/bin",
        "VIRTUAL_ENV": "/home/me/venv",
    }
    said = compared(kept, now)
    assert said.kept == ["DATA_DIR", "OMP_NUM_THREADS", "PATH", "VIRTUAL_ENV"]
    assert said.changed == ["SEED"]
    assert said.missing == ["HF_TOKEN", "HTTP_PROXY", "WANDB_API_KEY"]


def test_another_environment_that_is_active_now_is_the_one_that_is_meant() -> None:
    now = {"PATH": "/home/me/new/bin:/bin", "VIRTUAL_ENV": "/home/me/new"}
    assert joined(to_keep(FIRST), now)["PATH"] == now["PATH"]
    assert "PATH" in compared(to_keep(FIRST), now).changed


def test_it_is_remembered_from_one_start_to_the_next_what_the_first_had() -> None:
    kept = to_keep(FIRST)
    again = to_keep(joined(kept, {"SEED": "3"}), kept)
    assert again.values == kept.values | {"SEED": "3"}
    assert again.secrets == kept.secrets
    assert joined(None, {"A": "1"}) == {"A": "1"}


def test_a_secret_is_known_by_its_name_or_by_what_it_looks_like() -> None:
    secrets = {
        "MYSQL_PWD": "mine",
        "GITHUB_PAT": "mine",
        "AZURE_STORAGE_CONNECTION_STRING": "mine",
        "STORE": "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=mine==",
        "INDEX": "https://abcdef0123456789@pypi.example/simple",
        "BLOB": "https://me.blob.example/c?sv=2024&sig=mine",
        "HOOK": "https://hooks.example/?api_key=mine",
        "DB": "host=db password=mine",
        "EXTRA": "--epochs 3 --hub-token mine",
        "HEADER": "Bearer hf_abcdefgh0123456789",
        "JSON_OF": '{"id": "ghp_abcdefgh0123456789"}',
        "PEM": "-----BEGIN PRIVATE",
    }
    plain = {
        "EXTRA_ARGS": "--max-tokens=512 --seed 3",
        "REPO": "ssh://git@example.org/me/it",
        "DATA": "/data/disk-1/sk-learn",
        "OLD_MODELS": "/models/hf_cache",
        "NUMBERS": "a=1,b=2",
        "LOG": "-" * 4000,
    }
    kept = to_keep(secrets | plain)
    assert kept.secrets == sorted(secrets)
    assert kept.values == plain


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=3000), max_size=20))
def test_it_has_a_bound_and_keeps_no_value_of_what_looks_like_a_secret(environment: dict[str, str]) -> None:
    kept = to_keep(environment | {"MY_PASSWORD": "mine", "my_api_key": "mine", "URL": "ftp://a:mine@b"})
    assert sum(len(name.encode()) + len(value.encode()) for name, value in kept.values.items()) <= MOST_BYTES
    assert isinstance(kept, CommandEnvironment)
    assert not {"MY_PASSWORD", "my_api_key", "URL"} & set(kept.values)
