"""What is installed and what transformers knows, told from their files. Importing it would take seconds."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.data.targets import TaskKind
from memsup.shared.files import read_small

_MOST_SOURCE_BYTES = 4 << 20
_HEADS: dict[TaskKind, str] = {
    "text-classification": "SEQUENCE_CLASSIFICATION",
    "token-classification": "TOKEN_CLASSIFICATION",
    "causal-lm": "CAUSAL_LM",
}
"""What transformers calls the models of each kind of task."""
_TYPE = re.compile(r'\(\s*"([^"\s]+)",\s*"\w+"')
_CLASS = re.compile(r'\(\s*"([^"\s]+)",\s*"(\w+)"')
_ATTRIBUTE = re.compile(r"\bself\.([A-Za-z_]\w*)")
_QUOTED = re.compile(r"""(?<=["'.^|(\\])([A-Za-z_]\w*)(?=["'.$|)\\])""")
_WRAPPERS = {"module", "_orig_mod"}
"""What torch's own wrappers around a model are called; where a program quotes them, it does not name its parts so."""
_FIGURE = re.compile(r"^ +(\w+)(?:: int[^=\n]*)? *= *(\d+),?$", re.MULTILINE)
_TYPE_OF_CONFIG = re.compile(r'"([^"\s]+)"[,:]\s*"\w+Config"')


def is_installed(package: str) -> bool:
    """Whether the package could be imported. It is not."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def folder_of_package(package: str) -> Path:
    """Where an installed package lies, which is not imported. Raises InputError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"The package {package} is not installed.")
    return Path(next(iter(spec.submodule_search_locations)))


def transformers_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transformers")
    except PackageNotFoundError:
        return "?"


@cache
def types_for(kind: TaskKind) -> frozenset[str] | None:
    """The model types of which transformers makes models for such a task. It is None where its files do not tell."""
    found = _listed(kind)
    return frozenset(_TYPE.findall(found)) if found else None


def _listed(kind: TaskKind) -> str:
    """Transformers' own list of them; empty where there is none."""
    list_of_kind = rf"^MODEL_FOR_{_HEADS[kind]}_MAPPING_NAMES = OrderedDict.*?^\)"
    found = re.search(list_of_kind, _source("modeling_auto.py"), re.DOTALL | re.MULTILINE)
    return found.group() if found else ""


@cache
def config_types() -> frozenset[str]:
    """The model types that transformers has a config for, whatever they are for; empty where its files do not tell."""
    return frozenset(_TYPE_OF_CONFIG.findall(_source("auto_mappings.py") + _source("configuration_auto.py")))


@cache
def families() -> dict[str, frozenset[str]]:
    """The model types of each family of classes, by how these begin: Bert, Roberta."""
    found: dict[str, set[str]] = {}
    for kind, name in _CLASS.findall(_listed("text-classification")):
        found.setdefault(name.removesuffix("ForSequenceClassification"), set()).add(kind)
    return {name: frozenset(kinds) for name, kinds in found.items()}


@cache
def words_of(kind: str) -> frozenset[str] | None:
    """The names that transformers' program of this model type uses for its parts, with those that it converts. It is None where
    there is no such program.
    """
    program = _program(kind)
    if not program:
        return None
    conversions = _source("../../conversion_mapping.py")
    earlier = _QUOTED.findall(conversions) if f'"{kind}"' in conversions else []
    return frozenset([*_ATTRIBUTE.findall(program), *_QUOTED.findall(program), *earlier]) - _WRAPPERS


@cache
def usual_figures(kind: str) -> dict[str, int]:
    """The whole numbers that transformers takes where the config of this model type does not say them; empty where its files do
    not tell. What has another name besides is not among them.
    """
    folder = kind.replace("-", "_")
    said = _source(f"../{folder}/configuration_{folder}.py") if folder.isidentifier() else ""
    return {name: int(number) for name, number in _FIGURE.findall(said) if f': "{name}"' not in said}


def counts_end_tokens(kind: str) -> bool:
    """Whether a classifier of this type reads its answer off the token that ends a row, and wants as many of them in each."""
    return "must have the same number of <eos> tokens" in _program(kind)


def wants_whole_heads(kind: str) -> bool:
    """Whether a model of this type has to be as wide as its heads times a whole number."""
    return "is not a multiple of the number of attention" in _program(kind)


@cache
def activations() -> frozenset[str]:
    """The names of the functions between layers; empty where transformers' files do not tell."""
    listed = re.search(r"^ACT2CLS = \{.*?^\}", _source("../../activations.py"), re.DOTALL | re.MULTILINE)
    return frozenset(re.findall(r'^    "([\w-]+)":', listed.group(), re.MULTILINE)) if listed else frozenset()


def _program(kind: str) -> str:
    """The program of a model type in transformers; empty where there is none of that name."""
    folder = kind.replace("-", "_")
    return _source(f"../{folder}/modeling_{folder}.py") if folder.isidentifier() else ""


def _source(name: str) -> str:
    """A file of transformers, from `transformers.models.auto` on; empty where there is none, as some versions have not all."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    try:
        return read_small(Path(spec.origin).parent / "models" / "auto" / name, _MOST_SOURCE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
