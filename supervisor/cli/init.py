"""`memsup init`: writes the `memsup.toml` that a dry run found out; with `--schema` what editors check such a file by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memsup.shared.commands import DEFAULT_RUN
from memsup.shared.data.seen import SeenRows
from memsup.shared.paths import current_folder, run_paths
from memsup.shared.settings import Settings, Share, Written, keys
from memsup.supervisor.cli.options import flag_options, json_option, setting_names, settings_of_flags
from memsup.supervisor.cli.screen import data, json_data, message
from memsup.supervisor.client.errors import RefusedError

if TYPE_CHECKING:
    from memsup.shared.loading import Loaded
    from memsup.supervisor.client.preparing import Plan

FILE = "memsup.toml"
_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_NAMES = ("train", "training", "data")
"""What a file of training data is called, where there are several."""


@click.command()
@json_option
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As for start.", shell_complete=setting_names)
@flag_options
@click.option("--schema", is_flag=True, help="Print the JSON schema of memsup.toml instead.")
@click.option("--force", is_flag=True, help="Write over a memsup.toml that is there.")
def init(
    *,
    as_json: bool,
    assignments: tuple[str, ...],
    schema: bool,
    force: bool,
    use_amp: bool,  # noqa: ARG001 - training scripts have it, and a file says it in its own way
    accumulation: int | None,
    **flags: str | None,
) -> int:
    """Look at the data and the model as a start would, and write down what was found and chosen as ./memsup.toml.

    Without --train the data file in this folder is taken.
    """
    from memsup.supervisor.client.preparing import load_settings, plan_new
    from memsup.supervisor.daemon.claims import beside

    if schema:
        from memsup.shared.schema import schema_of_settings

        json_data(schema_of_settings())
        return 0
    folder = current_folder()
    file = folder / FILE
    if os.path.lexists(file) and not force:
        raise RefusedError(f"There is a {FILE} in {folder} already; look at what it does with: memsup start --dry-run")
    given = assignments + settings_of_flags(flags, assignments, accumulation, is_command=False)
    if not any(one.startswith("task.train=") for one in given):
        given += (f"task.train={_only_data_file(folder)}",)
    if not any(one.startswith("task.model=") for one in given):
        raise RefusedError("Which model is to be trained? For example: memsup init --model bert-base-chinese")
    loaded = load_settings(tier=None, assignments=given, environment=os.environ, job=False)
    paths = run_paths(DEFAULT_RUN)
    plan = plan_new(paths, loaded, None, beside(paths))
    text = "".join(f"{line}\n" for line in _lines(plan, loaded, folder))
    if as_json:
        json_data({"schema": 1, "file": str(file), "content": text})
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RefusedError(f"{file} cannot be written: {error.strerror}.", 1) from None
    if not as_json:
        data(f"Written: {file}", *text.rstrip("\n").split("\n"))
        message("Train it with: memsup start   For editors that check such files: memsup init --schema")
    return 0


def _only_data_file(folder: Path) -> str:
    """The one file in the folder that looks like training data. Raises `RefusedError` where there is none, or several."""
    found = sorted(each.name for each in folder.iterdir() if each.suffix.lower() in _ENDINGS and each.is_file())
    named = [name for name in found if Path(name).stem.lower() in _NAMES]
    if len(named or found) == 1:
        return (named or found)[0]
    there = f"There are {', '.join(found[:5])}" if found else f"There is no {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]} file"
    raise RefusedError(f"{there} in {folder}; say which: memsup init --train FILE --model MODEL")


def _lines(plan: Plan, loaded: Loaded, folder: Path) -> Iterator[str]:
    assert plan.task is not None, "it is planned without a command"
    yield f"# Of {plan.task.train.source}: {plan.task.train.rows:,} rows. Every setting: docs/settings.md"
    found = dict(_found(plan, folder))
    section = ""
    for name, key in keys().items():
        is_typed = loaded.origins.get(name) == "flag" and not key.is_secret
        if name not in found and not is_typed:
            continue
        if key.section != section:
            yield from ([""] if section else [])
            yield f"[{key.section}]"
            section = key.section
        yield f"{name.rpartition('.')[2]} = {_written(found.get(name, key.value(loaded.settings)), key.written)}"


def _found(plan: Plan, folder: Path) -> Iterator[tuple[str, Any]]:
    """What was found out and chosen, which stands there whether it was typed or not."""
    default = Settings()
    task, data = plan.settings.task, plan.task
    assert data is not None
    for name in ("model", "train", "eval"):
        if (path := getattr(task, name)) is not None:
            yield f"task.{name}", _from_here(path, folder)
    columns = task if isinstance(data.train, SeenRows) else data.train.columns
    switches = () if isinstance(data.train, SeenRows) else data.train.columns.switches
    for name in ("text", "text_pair", "label"):
        if (column := getattr(columns, name)) is not None and not (name == "label" and switches):
            yield f"task.{name}", column
    if labels := task.labels or list(switches):
        yield "task.labels", labels
    for name in ("kind", "problem_type", "class_weights"):
        if (value := getattr(task, name)) != getattr(default.task, name):
            yield f"task.{name}", value
    for name in ("epochs", "effective_batch", "max_length", "learning_rate", "device", "seed"):
        yield f"training.{name}", getattr(plan.settings.training, name)


def _from_here(path: Any, folder: Path) -> Any:
    """A path as it is written in a file that lies in `folder`."""
    if isinstance(path, list):
        return [_from_here(each, folder) for each in path]
    if path is None or not os.path.isabs(path) or not Path(path).is_relative_to(folder):
        return path
    return str(Path(path).relative_to(folder))


def _written(value: Any, how: Written | None = None) -> str:
    """A value as TOML has it. JSON's texts and lists are TOML's as well."""
    import json

    if isinstance(value, Share):
        return f'"{value.fraction * 100:g}%"'
    if how is Written.SIZE:
        unit, bits = next((unit for unit in (("GiB", 30), ("MiB", 20)) if value % (1 << unit[1]) == 0), ("B", 0))
        return f'"{value >> bits}{unit}"'
    if how is Written.DURATION:
        return f'"{value:g}s"'
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_written(name)} = {_written(each)}' for name, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)
