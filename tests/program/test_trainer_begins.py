"""A Trainer's training that cannot be gone on with, or not saved, says so; what is at stake is the rest of the program."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from memsup import life, places
from memsup.about import About, Seam
from memsup.link import Told
from memsup.places import Place
from memsup.store import CheckpointError
from memsup.trainer import _Guarded


@pytest.fixture
def found(tmp_path: Path) -> life.Life:
    """A life of which nobody is told: its link is not open."""
    told = f'{{"socket": "/nowhere", "run_id": "r", "checkpoints": "{tmp_path}/kept", "every_s": 1000.0, "keep": 2}}'
    return life.Life(Told(told), About(Seam.TRAINER))


def test_a_checkpoint_of_a_loop_of_ones_own_is_refused(found: life.Life) -> None:
    """As where a program was rewritten for Trainer: to begin anew without a word would lose what was computed."""
    place = Place("", [], 5, 0, 5, is_complete=False, begun_with=None, generators=places.take())
    found.training.save(place, lambda folder: Path(folder, "state").touch())
    found.training.find(found.session)
    with pytest.raises(CheckpointError, match=r"none of a Trainer's.*--fresh"):
        _Guarded(object(), found).find(None)


def test_a_checkpoint_that_was_written_to_and_cannot_be_written_anew_ends_nothing(found: life.Life, tmp_path: Path) -> None:
    state = SimpleNamespace(global_step=5, max_steps=9, epoch=0.5)
    guarded = _Guarded(SimpleNamespace(state=state), found)
    found.session.begin(guarded)
    guarded._given._stamps = (str(tmp_path), {"model.safetensors": (1, 1)})
    guarded._mend_what_was_written_to()
    said = [found.link._outbox.get() for _ in range(found.link._outbox.qsize())]
    assert [(each["kind"], each["what"]) for each in said] == [("decided", "checkpoint_failed")]


def test_a_place_that_would_not_be_read_again_is_not_saved(found: life.Life, tmp_path: Path) -> None:
    place = Place(
        "", [], 5, 0, 5, is_complete=False, begun_with=None, generators={}, more={"long": "x" * places.MOST_PLACE_BYTES}
    )
    with pytest.raises(ValueError, match="are not read"):
        found.training.save(place, lambda _folder: None)
    assert not list((tmp_path / "kept").iterdir())
