"""What has become of a run that another one waits for, by its lock and its files."""

from __future__ import annotations

import pytest
from kit.cli_process import RUN_ID, a_run
from kit.statuses import a_status

from memsup.shared.paths import RunPaths, run_paths
from memsup.shared.record import Awaited
from memsup.shared.status import HoursStatus, RunState, Wanted, encode_status
from memsup.supervisor.client.queueing import to_wait_for
from memsup.supervisor.client.removal import remove
from memsup.supervisor.daemon.awaited import fate_of, look
from memsup.supervisor.daemon.lock import Lock
from memsup.supervisor.decide.run.waiting import Fate, left_behind

A = Awaited(run="a", run_id=RUN_ID)


def ended(paths: RunPaths, state: RunState, run_id: str = RUN_ID) -> None:
    status = a_status(state)
    status.run, status.run_id = paths.name, run_id
    paths.status.write_bytes(encode_status(status))


@pytest.mark.parametrize(
    ("state", "wanted", "fate"),
    [
        (RunState.FINISHED, Wanted.RUNNING, Fate.FINISHED),
        (RunState.FAILED, Wanted.RUNNING, Fate.FAILED),
        (RunState.STOPPED, Wanted.STOPPED, Fate.STOPPED),
        (RunState.STOPPED, Wanted.RUNNING, Fate.LEFT),  # as at a shutdown of the machine
        (RunState.RUNNING, Wanted.RUNNING, Fate.LEFT),  # its supervisor was killed
        (RunState.WAITING, Wanted.PAUSED, Fate.LEFT),
        (RunState.RUNNING, Wanted.STOPPED, Fate.STOPPED),  # and somebody said so since
    ],
)
def test_what_a_run_was_and_is_wanted_to_be_says_whether_it_is_over(state: RunState, wanted: Wanted, fate: Fate) -> None:
    paths = a_run("a", wanted=wanted)
    ended(paths, state)
    assert fate_of(A) is fate
    lock = Lock(paths)
    assert fate_of(A) is Fate.UP, "whoever holds it may have started it again"
    lock.release()
    assert look([A]) == {"a": fate}


def test_a_run_that_rests_until_somebody_resumes_it_is_one_that_nothing_comes_of_by_itself() -> None:
    paths = a_run("a")
    lock = Lock(paths)
    for until, fate in ((1e9, Fate.UP), (None, Fate.RESTS)):
        status = a_status(RunState.PAUSED)
        status.run, status.run_id, status.hours = "a", RUN_ID, HoursStatus(rests=True, until=until, what="by its hours")
        paths.status.write_bytes(encode_status(status))
        assert fate_of(A) is fate
    waits = Awaited(run="a", run_id=RUN_ID)
    assert to_wait_for(run_paths("w"), ["a"], []) == ([waits], [left_behind("w", waits, Fate.RESTS)])
    lock.release()
    assert left_behind("w", waits, Fate.RESTS) == (
        "Run 'a', for which this one waits, rests until you resume it, by its hours. Go on with it: memsup resume --run a   "
        "Or have run 'w' begin without it: memsup stop --run a"
    )
    must = Awaited(run="a", run_id=RUN_ID, must_finish=True)  # of which stopping it would make the end of both
    assert left_behind("w", must, Fate.LEFT).endswith("memsup stop --run w, then memsup start --run w")


def test_a_run_that_is_gone_or_another_one_is_not_waited_for() -> None:
    assert fate_of(A) is Fate.GONE
    paths = a_run("a")
    assert fate_of(Awaited(run="a", run_id="another")) is Fate.GONE
    ended(paths, RunState.FINISHED, run_id="another")  # what its name had before
    assert fate_of(A) is Fate.LEFT
    remove(paths)
    assert fate_of(A) is Fate.GONE


def test_a_run_whose_files_cannot_be_read_is_not_taken_to_be_over() -> None:
    paths = a_run("a")
    paths.record.write_text("{half")
    assert fate_of(A) is Fate.LEFT
    paths.state.chmod(0o777)
    assert fate_of(A) is Fate.LEFT
    paths.state.chmod(0o700)
