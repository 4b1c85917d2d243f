"""Without `memsup start` the calls do nothing but train, and what is asked wrongly is refused."""

from __future__ import annotations

import fcntl
import os
import random
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import memsup
from memsup import life, places
from memsup.about import About, Seam
from memsup.link import VARIABLE, _ready, start_anew, told
from memsup.shared.paths import prepare, run_paths
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings
from memsup.shared.status import Wanted
from memsup.supervisor.fence import program


@pytest.fixture
def run() -> memsup.Run:
    return memsup.guard(save=print, load=print)


def test_batches_come_as_the_loader_gives_them_and_no_number_is_drawn(run: memsup.Run) -> None:
    before = random.getstate()
    loader, seen = [1, 2, 3], []
    for batch in run.steps(loader, epochs=2):
        seen.append((run.epoch, run.step, batch))
        run.tell(loss="whatever")
    assert seen == [(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 3, 1), (1, 4, 2), (1, 5, 3)]
    assert (run.step, run.total_steps, run.is_attached) == (6, 6, False)
    run.finish("anywhere", metrics={"loss": 1.0})
    assert random.getstate() == before


@pytest.mark.parametrize(
    ("epochs", "total", "steps", "known"), [(1, None, 3, 3), (2, 4, 4, 4), (None, 7, 7, 7), (2, 9, 6, 6), (1, 0, 0, 0)]
)
def test_a_loop_ends_with_its_epochs_or_its_total(
    run: memsup.Run, epochs: int | None, total: int | None, steps: int, known: int
) -> None:
    assert len(list(run.steps([1, 2, 3], epochs=epochs, total=total))) == steps
    assert (run.step, run.total_steps) == (steps, known)


def test_a_loop_of_ones_own_is_counted(run: memsup.Run) -> None:
    while run.step < 5:
        run.boundary(loss=0.5)
    assert (run.step, run.total_steps) == (5, None)
    run.total_steps = 9
    assert run.total_steps == 9
    assert list(run.evaluate([1, 2])) == [1, 2]
    run.finish()


def test_a_training_within_the_handler_of_an_exception_is_complete_all_the_same() -> None:
    """As where something that is missing is caught, and the program goes on from there."""
    try:
        raise ImportError("no such package")
    except ImportError:
        run = memsup.guard()
        run.finish()
        assert run._is_complete
    run = memsup.guard()
    try:
        raise ValueError("within the loop")
    except ValueError:
        run.finish()
    assert not run._is_complete


def test_a_number_of_steps_is_whole_whoever_has_counted_them(run: memsup.Run) -> None:
    """Integers of numpy's are none of Python's own, and no float is one."""

    class Counted:
        def __index__(self) -> int:
            return 7

    run.total_steps = Counted()  # type: ignore[assignment]
    assert type(run.total_steps) is int
    with pytest.raises(TypeError, match="float"):
        run.total_steps = 7.0  # type: ignore[assignment]


def test_a_call_in_another_thread_leaves_the_training_of_the_main_one_attached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        VARIABLE, '{"socket": "/nowhere/worker.sock", "run_id": "r", "checkpoints": "/x", "every_s": 1, "keep": 2}'
    )
    found = told()
    assert found is not None
    ours = life.Life(found, About(Seam.CALLS))
    monkeypatch.setattr(life, "_life", ours)
    thread = threading.Thread(target=memsup.guard)
    thread.start()
    thread.join()
    assert "not called in the main thread" in capsys.readouterr().err
    assert life._life is ours
    assert ours.link._outbox.empty()


def test_a_second_loop_of_a_training_goes_on_counting_and_has_epochs_of_its_own(run: memsup.Run) -> None:
    assert len(list(run.steps([1, 2, 3], epochs=2))) == 6
    seen = [(run.epoch, run.step) for _ in run.steps([1, 2], epochs=2, total=3)]
    assert seen == [(0, 6), (0, 7), (1, 8)]
    assert (run.step, run.total_steps) == (9, 9)


def test_what_makes_no_sense_is_refused(run: memsup.Run) -> None:
    with pytest.raises(TypeError, match="never end"):
        next(run.steps([1], epochs=None))
    with pytest.raises(TypeError, match="together"):
        memsup.guard(save=print)
    with pytest.raises(TypeError, match="no model= with a Trainer"):
        memsup.guard(SimpleNamespace(train=print, callback_handler=None), model=print)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="no batch"):
        next(run.steps([], epochs=None, total=3))
    loop = run.steps([1])
    next(loop)
    with pytest.raises(RuntimeError, match="one loop"):
        next(run.steps([1]))
    with pytest.raises(RuntimeError, match=r"run\.tell"):
        run.boundary()


def test_a_program_reads_what_a_supervisor_tells_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert VARIABLE == program.VARIABLE
    for nonsense in ("", "{", "[]", "{}", "null", '{"socket": 1}'):
        monkeypatch.setenv(VARIABLE, nonsense)
        assert told() is None
        assert not memsup.guard().is_attached


def test_a_supervisor_that_is_gone_is_said_and_the_program_trains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        VARIABLE, '{"socket": "/nowhere/worker.sock", "run_id": "r", "checkpoints": "/x", "every_s": null, "keep": 2}'
    )
    assert list(memsup.guard(save=print, load=print).steps([1, 2])) == [1, 2]
    assert "fenced, not attached: its supervisor cannot be reached" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    memsup.guard()
    assert "several ranks" in capsys.readouterr().err
    with pytest.raises(AttributeError, match="no attribute"):
        _ = memsup.gard  # type: ignore[attr-defined]


@pytest.mark.slow
def test_generators_go_on_as_they_were_when_they_were_taken() -> None:
    """Those of Python, numpy, torch, and a loader's own."""
    import json

    import numpy as np
    import torch

    data: Any = list(range(20))
    sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator())
    in_batches = torch.utils.data.BatchSampler(sampler, 3, drop_last=False)
    for loader in (
        torch.utils.data.DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator()),
        torch.utils.data.DataLoader(data, batch_sampler=in_batches),
    ):

        def draw(loader: Any = loader) -> list[object]:
            drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]
            return [*drawn, [batch.tolist() for batch in loader], os.getpid()]

        taken = json.loads(json.dumps(places.take(loader)))
        first, second = draw(), draw()
        assert first != second
        places.put_back(taken, loader)
        assert [draw(), draw()] == [first, second]


@pytest.mark.slow
def test_a_state_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    import numpy as np
    import torch

    model = torch.nn.Linear(2, 2)
    for rate in (0.1, np.float64(0.1)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        save, load = places.savers({"model": model, "optimizer": optimizer})
        if isinstance(rate, np.float64):
            with pytest.raises(TypeError, match=r"is to be float\(…\)"):
                save(str(tmp_path))
        else:
            save(str(tmp_path))
            load(str(tmp_path))


def test_a_program_with_thousands_of_files_open_hears_its_supervisor() -> None:
    here, there = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    high = fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, 2000)
    try:
        assert _ready(high, high, writes=True, within_s=0) == set()
        there.sendall(b"x")
        assert _ready(high, high, writes=False, within_s=5) == {high}
        there.close()
        assert _ready(high, high, writes=False, within_s=5) == {high}
    finally:
        os.close(high)
        here.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_is_to_be_typed_to_begin_anew_names_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_anew() == "memsup start --fresh"
    paths = run_paths("night")
    record = RunRecord(
        run="night", run_id="r", created_unix_s=1.0, wanted=Wanted.RUNNING, tier="safe", tier_reason="so", settings=Settings()
    )
    prepare(paths)
    monkeypatch.setenv(VARIABLE, program.told_to_program(paths, record, {})[VARIABLE])
    assert start_anew() == "memsup start --run night --fresh"
