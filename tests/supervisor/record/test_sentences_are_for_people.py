"""No program reads the ledger's sentences: what it has to know stands in the enums and fields beside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import ROOT

FOLDERS = ("supervisor", "tests/kit", "benchmarks")
KNOWS_THE_FORMER_FORMAT = ROOT / "supervisor/record/old_ledger.py"
SENTENCES = {"reason", "action", "result"}
LOOKS_INTO = {
    *("startswith", "endswith", "removeprefix", "removesuffix", "find", "rfind", "index", "rindex", "count"),
    *("match", "fullmatch", "search", "findall", "finditer", "sub", "partition", "rpartition", "split", "replace"),
}


def looked_into(source: str) -> list[int]:
    """The lines on which a sentence of the ledger, or a name that was given one, is compared, searched or taken apart.

    Whether there is one at all (`is None`, or its truth) may be asked, and its first line may be shown.
    """
    found = set()
    tree = ast.parse(source)
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Module | ast.FunctionDef | ast.Lambda):
            names = set(_given_a_sentence(scope))
            found |= {node.lineno for node in _within(scope) if _looks_into(node, names)}
    return sorted(found)


def _within(scope: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The nodes of a scope, those of functions in it left out."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.expr | ast.stmt):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from _within(node)


def _given_a_sentence(scope: ast.AST) -> Iterator[str]:
    for node in _within(scope):
        if not isinstance(node, ast.Assign | ast.NamedExpr):
            continue
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            pairs = (
                zip(target.elts, node.value.elts, strict=False)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else [(target, node.value)]
            )
            yield from (name.id for name, value in pairs if isinstance(name, ast.Name) and _is_sentence(value, set()))


def _is_sentence(node: ast.expr, names: set[str]) -> bool:
    match node:
        case ast.Attribute(attr=name):
            return name in SENTENCES
        case ast.Subscript(value=value, slice=key):
            return (isinstance(key, ast.Constant) and key.value in SENTENCES) or _is_sentence(value, names)
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=key), *_]):
            return key in SENTENCES
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold" | "splitlines"), args=[]):
            return _is_sentence(value, names)
        case ast.Name(id=name):
            return name in names
        case ast.BoolOp(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
            return any(_is_sentence(value, names) for value in values)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_sentence(body, names) or _is_sentence(orelse, names)
        case ast.JoinedStr(values=values):
            return any(isinstance(v, ast.FormattedValue) and _is_sentence(v.value, names) for v in values)
        case _:
            return False


def _looks_into(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.Compare(ops=ops, left=left, comparators=comparators):
            asks_for_none = all(isinstance(op, ast.Is | ast.IsNot) for op in ops)
            return not asks_for_none and any(_is_sentence(side, names) for side in (left, *comparators))
        case ast.Match(subject=subject):
            return _is_sentence(subject, names)
        case ast.Call(func=ast.Attribute(value=value, attr=method), args=arguments) if method in LOOKS_INTO:
            first_line = method == "partition" and [getattr(a, "value", None) for a in arguments] == ["\n"]
            return not first_line and any(_is_sentence(part, names) for part in (value, *arguments))
        case _:
            return False


@pytest.mark.parametrize(
    "source",
    [
        'entry.reason == "the user asked"',
        '"°C" in entry.reason',
        '(entry.action or "").startswith("compute ")',
        'action = entry.action or ""\nif action == "resume": pass',
        'a, b = entry.action, entry.result\nb in ("x",)',
        "def f(e):\n    text = e.result\n    return text.split()[0]",
        'any(e.event == "order" and e.action.lower() == "stop" for e in entries)',
        'find(lambda e: e.event == "wanted" and (e.action or "").startswith(w))',
        're.match("x", entry["reason"])',
        'entry.get("result").partition(":")[0]',
        'match entry.event, entry.action:\n    case "order", "stop": pass',
        'entry.result.splitlines()[0] == "x"',
        'f"{entry.reason}!" == "x!"',
    ],
)
def test_looking_into_a_sentence_is_seen(source: str) -> None:
    assert looked_into(source)


@pytest.mark.parametrize(
    "source",
    [
        "entry.event is Event.ORDER and entry.order is OrderKind.STOP",
        "entry.result is not None",
        'f"{entry.reason}: {entry.action or entry.event}"',
        'entry.result.partition("\\n")[0]',
        "action = entry.action\nshow(action)\nlength == 3",
        "def f(e):\n    action = e.action\n    show(action)\ndef g(action):\n    return action == 3",
    ],
)
def test_showing_a_sentence_is_allowed(source: str) -> None:
    assert not looked_into(source)


def test_no_program_looks_into_a_sentence_of_the_ledger() -> None:
    """Whoever has to know more than the fields say adds a field; only the reader of the former format knows its words."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") if file != KNOWS_THE_FORMER_FORMAT]
    assert len(files) > 100
    found = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in looked_into(file.read_text(encoding="utf-8"))]
    assert found == []


def test_the_reader_of_the_former_format_is_seen_too() -> None:
    """Or the exception would hide that nothing is looked for any more."""
    assert looked_into(Path(KNOWS_THE_FORMER_FORMAT).read_text(encoding="utf-8"))
