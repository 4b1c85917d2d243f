"""Attaches a training program that knows nothing of memsup: its interpreter imports this as `sitecustomize` when it begins.

`memsup start --` puts a folder that has this file under that name on `PYTHONPATH`. What it does by itself is next to nothing,
since every interpreter of the command does it, pip's and a loader's among them: it waits for `transformers.trainer` to be
imported, and only there has `attach.py` join the two. A `sitecustomize` of the user's own comes to its right.

It has to be read by any Python, however old; in one that is too old for memsup nothing is waited for.
"""

import sys

_SEAM = "transformers.trainer"


class _Finder:
    """Finds the one module as the other finders do, and has it joined once it is executed."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _SEAM:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                _join_when_executed(spec)  # type: ignore[no-untyped-call]
                return spec
        return None


def _join_when_executed(spec):  # type: ignore[no-untyped-def]
    execute = getattr(spec.loader, "exec_module", None)
    if execute is None:
        return

    def exec_module(module):  # type: ignore[no-untyped-def]
        execute(module)
        try:
            from memsup import attach

            attach.join(module)
        except Exception as error:  # the program is to run as it does without memsup
            sys.stderr.write("memsup: this program is fenced, not attached: {0!r}\n".format(error))  # noqa: UP030, UP032

    try:
        spec.loader.exec_module = exec_module
    except AttributeError:  # a loader that takes no attributes: fenced, not attached
        return


def _go_on_to_theirs():  # type: ignore[no-untyped-def]
    """Imports the `sitecustomize` that the interpreter would have found without this one, under its name. Raises ImportError as
    if this one were not there where there is none.
    """
    import importlib.machinery
    import os

    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [folder for folder in sys.path if os.path.abspath(folder) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is None or spec.loader is None:
        raise ImportError("No module named 'sitecustomize'", name="sitecustomize")
    from importlib._bootstrap import module_from_spec

    module = module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if __name__ == "sitecustomize":
    if sys.version_info >= (3, 9):  # noqa: UP036 - any interpreter of the command reads this
        sys.meta_path.insert(0, _Finder())
    _go_on_to_theirs()  # type: ignore[no-untyped-call]
