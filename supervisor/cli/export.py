"""`memsup export`: the model that a run has made as a folder of one's own; adapters merged into the weights they belong to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from memsup.shared.commands import command
from memsup.shared.model.adapters import ADAPTER_CONFIG
from memsup.shared.paths import RunPaths, absolute, paths_of
from memsup.supervisor.cli.options import json_option, run_option
from memsup.supervisor.cli.predict import finished_model
from memsup.supervisor.cli.screen import json_data, message
from memsup.supervisor.client.errors import RefusedError
from memsup.supervisor.client.prediction import NOT_DONE, limit_bytes
from memsup.supervisor.client.spawning import environment

if TYPE_CHECKING:
    from memsup.shared.record import RunRecord

LOG = "export.log"


@click.command()
@run_option
@json_option
@click.option("--merge", is_flag=True, help="Put adapters into the weights that they belong to: one model that needs no peft.")
@click.argument("folder", metavar="FOLDER")
def export(*, run_name: str, as_json: bool, merge: bool, folder: str) -> int:
    """Write the model that a run has made into FOLDER, which is made.

    Exit code: 0 done, 1 it could not be written, 2 bad input, 3 the run is not finished, 4 unknown run.
    """
    paths = paths_of(run_name)
    record, model = finished_model(paths)
    target = absolute(folder)
    if os.path.lexists(target):
        raise RefusedError(f"{target} is there already: name a folder that is not.")
    if not target.parent.is_dir():
        raise RefusedError(f"There is no folder {target.parent}: make it, or name another place.")
    adapts = (model / ADAPTER_CONFIG).is_file()
    merged = merge and adapts
    dtype = None
    if merged:
        dtype = _merge(paths, record, model, target)
    else:
        _copy(model, target)
    if as_json:
        json_data({"schema": 1, "folder": str(target), "merged": merged, "dtype": dtype})
        return 0
    if merged:
        rounded = "" if dtype == "float32" else f", rounded to {dtype}, as the weights that it began with are"
        message(f"Written: {target}, one model{rounded}")
    else:
        what = "the whole model" if not adapts else "the adapters"
        one = "" if not adapts else f". To get one model: {command('export', paths.name)} --merge FOLDER"
        message(f"Written: {target}, {what}{one}")
    return 0


def _copy(model: Path, target: Path) -> None:
    """Raises `RefusedError`."""
    try:
        shutil.copytree(model, target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise RefusedError(f"{target} cannot be written: {error.strerror or error}.", NOT_DONE) from None


def _merge(paths: RunPaths, record: RunRecord, model: Path, target: Path) -> str:
    """Returns the type of the weights. Raises `RefusedError`."""
    asked = [sys.executable, "-P", "-m", "memsup.worker.export", "--model", str(model), "--target", str(target)]
    asked += ["--limit-bytes", str(limit_bytes(paths, record))]
    with (paths.state / LOG).open("wb") as log:
        done = subprocess.run(
            asked, stdout=subprocess.PIPE, stderr=log, cwd="/", env=environment(paths), text=True, check=False
        )
    try:
        said = json.loads(done.stdout)
    except ValueError:
        said = {"error": f"The process that exports ended with {done.returncode}. Its log: {paths.state / LOG}"}
    if "error" in said:
        raise RefusedError(str(said["error"]), NOT_DONE)
    return str(said["dtype"])
