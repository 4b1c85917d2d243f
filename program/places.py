"""What a checkpoint of a program holds besides the program's own state: its place, and the generators of random numbers.

The generators are remembered twice: as they were before the loader began this epoch, so that it can be begun again in the same
order, and as they are. Nothing is seeded here: a program draws the same numbers with memsup and without. numpy and torch are
asked only where the program has imported them.
"""

from __future__ import annotations

import inspect
import json
import os
import random
import stat
import sys
from typing import Any, Callable, NamedTuple

from memsup import cut_generators

PLACE, STATE = "memsup-place.json", "memsup-state.pt"
"""Names that a program's own `save` would not choose."""

Generators = dict[str, Any]
"""The state of each generator, by its name, as JSON has it."""


MOST_PLACE_BYTES = 4 << 20
"""No place is larger; a larger file is not read."""


class Place(NamedTuple):
    """Where a program is between two steps."""

    run_id: str
    program: list[str]
    """The program's file and arguments: another program of the same run is none that could go on from here."""
    step: int
    epoch: int
    in_epoch: int
    """How many batches of the epoch are done."""
    is_complete: bool
    """Whether the program has said that nothing is left to do."""
    begun_with: Generators | None
    """The generators before the loader began this epoch, and its own. None means that it has begun none."""
    generators: Generators
    training: str = "1"
    """The key of the training among those of the program."""
    offset: int = 0
    """The steps of the trainings before it: a checkpoint is named after both."""
    loop: int = 1
    """How many times the training has begun to go through a loader, each with epochs of its own."""
    loop_from: int = 0
    """The step at which that loop began."""
    given_with: Generators | None = None
    """The generators before the loader was asked for the last batch that is done: it may have read further, and drawn for that.
    None means that it was asked for none in this epoch."""
    trained_s: float = 0.0
    """Time in which it was computing."""
    more: dict[str, Any] | None = None
    """What an adapter adds, as JSON has it."""
    most_tokens: int | None = None
    """The bound of rows × padded length of a part that was found by running out of memory, or ordered. None means none."""
    limit_bytes: int | None = None
    """What the program was allowed to hold meanwhile. It is None where nobody knew."""
    predict_tokens: int | None = None
    """As `most_tokens`, of what is predicted without gradients."""
    ranks: int = 1
    """How many ranks there were, each with a place of its own."""


def this_program() -> list[str]:
    """What `Place.program` is in this process: the file by the path that Python made absolute, since a program may have gone to
    another folder by now, and `sys.argv` says how it was called from the first one. The kernel of a notebook is called with
    another connection file each time; which notebook it is stands in the environment, where a Jupyter server has begun it.
    """
    called, *arguments = sys.argv or [""]
    if os.path.basename(called).endswith("kernel_launcher.py"):
        return [called, os.environ.get("JPY_SESSION_NAME") or os.getcwd()]
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return [os.path.abspath(file) if file else called, *arguments]


def write_place(folder: str, place: Place) -> None:
    """Raises OSError, TypeError for what JSON has not, and ValueError for what would not be read again."""
    content = json.dumps(place._asdict())
    if len(content) > MOST_PLACE_BYTES:
        raise ValueError(f"its place would have {len(content):,} bytes, and more than {MOST_PLACE_BYTES:,} are not read")
    with open(os.path.join(folder, PLACE), "x", encoding="ascii") as file:
        file.write(content)


def read_document(folder: str) -> Any:
    """The place in a folder as JSON has it, whichever memsup has written it. Raises OSError and ValueError where none is."""
    fd = os.open(os.path.join(folder, PLACE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, encoding="ascii") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_PLACE_BYTES:
            raise ValueError("it is no file of memsup's")
        try:
            return json.load(file)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def read_place(folder: str) -> Place:
    """Raises OSError, ValueError and TypeError where there is none."""
    place = Place(**read_document(folder))
    numbers = (place.step, place.epoch, place.in_epoch, place.offset, place.loop, place.loop_from, place.ranks)
    texts = (place.run_id, place.training, *place.program)
    bounds = (place.most_tokens, place.limit_bytes, place.predict_tokens)
    are_ours = all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)
    if not are_ours or not all(bound is None or type(bound) is int for bound in bounds):
        raise TypeError("it is not what memsup writes")
    return place


# --------------------------------------------------------------------------------------------------------------------
# Generators


Taken = dict[str, Any]
"""The same as the libraries have it, which takes no time."""


def take(loader: Any = None) -> Generators:
    """The generators as they are: those of the process, and those of `loader` itself."""
    return as_json(taken(loader))


def taken(loader: Any = None) -> Taken:
    """As `take`, for `as_json` to be called where it is needed. It takes some ten microseconds."""
    found: Taken = cut_generators.take()
    for name, generator in _own_generators(loader):
        found[name] = generator.get_state()
    if isinstance(getattr(loader, "iteration", None), int):  # how accelerate's count their passes
        found["iteration"] = loader.iteration
    if has_processes_that_stay(loader) and _of_torch(loader)._iterator is not None:
        found["stays"] = True
    return found


def as_json(found: Taken) -> Generators:
    """What was taken, in lists, numbers and texts."""
    states: Generators = {}
    for name, state in found.items():
        if name in {"random", "iteration", "stays"}:
            states[name] = state
        elif name == "numpy":
            states[name] = _lists(state)
        else:
            states[name] = [_text(one) for one in state] if name == "cuda" else _text(state)
    return states


def put_back(taken: Generators, loader: Any = None) -> None:
    """Has the generators go on as they were when they were taken."""
    version, internal, gauss = taken["random"]
    random.setstate((version, tuple(internal), gauss))
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and "numpy" in taken:
        cut_generators.numpy_was_set()
        numpy.random.set_state(_arrays(taken["numpy"], numpy))
    if torch is not None and "torch" in taken:
        torch.set_rng_state(_state(torch, taken["torch"]))
    if torch is not None and "cuda" in taken and torch.cuda.device_count() == len(taken["cuda"]):
        torch.cuda.set_rng_state_all([_state(torch, text) for text in taken["cuda"]])
    for name, generator in _own_generators(loader):
        if name in taken:
            generator.set_state(_state(torch, taken[name]))
    if loader is not None and "iteration" in taken:
        loader.iteration = taken["iteration"]


def put_back_for_pass(taken: Generators, loader: Any) -> None:
    """Has the generators go on as they were when they were taken, right before a pass over `loader` that is to begin again now.
    Where its processes had stayed from an earlier pass, that one had drawn nothing to begin them, and neither does this one.
    """
    put_back(taken, loader)
    inner = _of_torch(loader)
    if "stays" not in taken or not has_processes_that_stay(loader) or inner._iterator is not None:
        return
    before, begin = vars(inner).get("_get_iterator"), inner._get_iterator

    def begun() -> Any:
        del inner._get_iterator
        if before is not None:
            inner._get_iterator = before
        return begun_without_a_draw(inner, begin)

    inner._get_iterator = begun


def begun_without_a_draw(loader: Any, begin: Callable[[], Any]) -> Any:
    """The iterator that `begin` makes for a loader of torch's, whose processes draw from no generator to be begun. Only that is
    drawn from the loader's own: the order of its rows is drawn from its sampler's.
    """
    own, loader.generator = loader.generator, sys.modules["torch"].Generator()
    try:
        return begin()
    finally:
        loader.generator = own


def has_processes_that_stay(loader: Any) -> bool:
    """Whether the processes of a loader live on from pass to pass (`persistent_workers`): they are begun in the first one, and
    each further pass is a `_reset` of the same iterator.
    """
    return bool(getattr(loader, "persistent_workers", False)) and hasattr(_of_torch(loader), "_iterator")


def before_each_further_pass(iterator: Any, tell: Callable[[], None]) -> None:
    """Has `tell` be called before an iterator of such processes begins another pass."""
    reset = iterator._reset

    def begun(*arguments: Any, **named: Any) -> None:
        tell()
        reset(*arguments, **named)

    iterator._reset = begun


def _of_torch(loader: Any) -> Any:
    """The loader of torch's of which accelerate's is made, or `loader` itself."""
    return getattr(loader, "base_dataloader", loader)


def _own_generators(loader: Any) -> list[tuple[str, Any]]:
    """The generators that a DataLoader and its samplers were given, each once. A sampler may be around another one, as
    accelerate's are, each rank's of which takes its share of the batches of the loader's own.
    """
    found: list[tuple[str, Any]] = []
    owners, seen = [("loader", loader)], list[Any]()
    while owners:
        name, owner = owners.pop(0)
        if owner is None or any(owner is known for known in seen):
            continue
        seen.append(owner)
        generator = getattr(owner, "generator", None)
        if hasattr(generator, "get_state") and all(generator is not known for _, known in found):
            found.append((name, generator))
        within = "" if owner is loader else f"{name}."
        owners += [(f"{within}{inner}", getattr(owner, inner, None)) for inner in ("sampler", "batch_sampler")]
    return found


def _lists(state: Any) -> Any:
    """The state of numpy's generator with lists for its arrays; a dictionary where somebody has chosen another generator."""
    if isinstance(state, dict):
        return {name: _lists(part) for name, part in state.items()}
    if isinstance(state, tuple):
        return [_lists(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state


def _arrays(state: Any, numpy: Any) -> Any:
    if isinstance(state, dict):
        return {name: _arrays(part, numpy) for name, part in state.items()}
    if isinstance(state, list) and isinstance(state[0], str):
        return tuple(state)
    return numpy.array(state, dtype=numpy.uint64) if isinstance(state, list) else state


def _text(state: Any) -> str:
    return bytes(state.tolist()).hex()


def _state(torch: Any, text: str) -> Any:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


# --------------------------------------------------------------------------------------------------------------------
# The state of a model, an optimizer and so on


def part_savers(parts: dict[str, Any]) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """How a rank beside rank 0 writes what only it has of `parts`, gradients that are not added up yet, and reads it."""
    torch = sys.modules.get("torch")

    def save(folder: str) -> None:
        gradients = {name: gradients_of(part) for name, part in parts.items()}
        if torch is not None and any(gradients.values()):
            torch.save(gradients, _in(folder))

    def load(folder: str) -> None:
        if torch is not None and os.path.exists(_in(folder)):
            gradients = _read(torch, folder)
            for name, part in parts.items():
                give_gradients(part, gradients[name])

    return save, load


def savers(parts: dict[str, Any]) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """How the state of `parts`, objects with `state_dict` by their names, is written into a folder, and read from it.

    Gradients that a model has at that moment are part of it: a program may be in the middle of adding them up.
    """
    torch = sys.modules.get("torch")
    strange = [name for name, part in parts.items() if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict"))]
    if strange or torch is None:
        what = f"{strange[0]} has no state_dict and load_state_dict" if strange else "torch is not imported"
        raise TypeError(f"memsup.guard cannot save this: {what}. Give it save= and load= instead.")

    def save(folder: str) -> None:
        assert torch is not None
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"states": states, "gradients": {name: gradients_of(part) for name, part in parts.items()}}, _in(folder))
        if _knows_mmap(torch):
            try:
                _read(torch, folder, mmap=True)
            except Exception as error:  # better said now than by whoever needs it
                raise TypeError(
                    "torch would not load this state again (weights_only): something in it is neither a tensor nor one of "
                    "Python's own numbers, texts, lists and dictionaries. A learning rate of numpy's, say, is to be float(…)."
                ) from error

    def load(folder: str) -> None:
        assert torch is not None
        saved = _read(torch, folder)
        for name, part in parts.items():
            part.load_state_dict(saved["states"][name])
            give_gradients(part, saved["gradients"][name])

    return save, load


def _knows_mmap(torch: Any) -> bool:
    """Whether this torch, 2.1 or newer, reads a state without its tensors, so that it costs next to nothing."""
    return "mmap" in inspect.signature(torch.load).parameters


def _read(torch: Any, folder: str, **how: bool) -> Any:
    return torch.load(_in(folder), map_location="cpu", weights_only=True, **how)


def _in(folder: str) -> str:
    return os.path.join(folder, STATE)


def _parameters(part: Any) -> list[tuple[str, Any]]:
    return list(part.named_parameters()) if hasattr(part, "named_parameters") else []


def gradients_of(part: Any) -> dict[str, Any]:
    """The gradients that a model has at this moment, by its parameters' names; of what is no model, none."""
    return {name: parameter.grad for name, parameter in _parameters(part) if parameter.grad is not None}


def give_gradients(part: Any, gradients: dict[str, Any]) -> None:
    for name, parameter in _parameters(part):
        parameter.grad = gradients[name].to(parameter.device) if name in gradients else None
