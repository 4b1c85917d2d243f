"""A training program of a person's own under `memsup start --`: attached, it is saved, stopped, released and gone on with like
the built-in training, and ends with the same weights; not attached, it is what it was, and everything says so.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.cli_process import MEMSUP, end_supervisors, eventually, memsup
from kit.own_program import (
    BARE_PYTHON,
    LOOP,
    OVER,
    STEPS,
    ended,
    is_attached,
    printed,
    result,
    trains_beyond,
    undisturbed,
    write_loop,
)
from kit.run_state import ledger, status, step_of, until

from memsup import zmtp
from memsup.shared import messages as m
from memsup.shared.endpoints import WORKER_SOCKET
from memsup.shared.paths import run_paths
from memsup.shared.run_file import read_record
from memsup.supervisor.decide.run.restarts import BUDGET, FAILURES_OF_A_STEP
from memsup.training import place_in


@pytest.fixture(autouse=True)
def nothing_keeps_running() -> Iterator[None]:
    yield
    end_supervisors()


@pytest.mark.slow
def test_orders_and_kills_change_nothing_of_what_is_learned(tmp_path: Path) -> None:
    """Its interpreter has nothing of memsup. Killed more often than the budget of restarts has deaths: newer checkpoints refill
    that.
    """
    wanted = undisturbed(tmp_path / "alone")
    started = memsup("start", "--", *write_loop(tmp_path), cwd=tmp_path, EVERY_S="1000", STEP_S="0.1")
    assert started.returncode == 0, started.stderr
    assert "memsup.guard" in started.stdout

    seen = trains_beyond(3)
    assert seen["progress"]["total_steps"] == STEPS
    assert seen["progress"]["loss"] is not None
    assert "attached" in memsup("status").stdout
    saved = memsup("checkpoint")
    assert saved.returncode == 0, saved.stderr
    assert memsup("checkpoint", "--verify", saved.stdout.strip()).returncode == 0

    held = memsup("pause")
    assert held.returncode == 0
    at = step_of(status())
    time.sleep(0.2)
    assert step_of(status()) == at
    assert status()["worker_pid"] is not None
    released = memsup("pause", "--release", "--json")
    assert released.returncode == 0, released.stdout
    assert released.document["checkpoint"]
    assert status()["worker_pid"] is None
    assert memsup("resume").returncode == 0

    trains_beyond(at)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert "with the verified checkpoint of step" in stopped.stdout
    stands = memsup("status", "--json").document
    assert stands["exit_code"] == 75
    assert stands["checkpoint"]["step"] == stands["progress"]["step"]
    assert memsup("checkpoint", "--list").returncode == 0
    again = memsup("start", STEP_S="0.02", EVERY_S="0.1")
    assert again.returncode == 0
    assert "checkpoint and stop; start continues" in again.stdout
    assert "anew" not in again.stdout

    draw = random.Random(5)
    for kills in range(BUDGET + 2):
        seen = until(lambda seen: seen["state"] in OVER or (is_attached(seen) and seen["worker_pid"] is not None), 30)
        if seen["state"] in OVER:
            assert kills > 2, "it has to be killed before it is through"
            break
        eventually(lambda pid=seen["worker_pid"]: status()["worker_pid"] != pid or step_of(status()) > 0, 30)
        time.sleep(draw.uniform(0.15, 0.3))
        try:
            os.kill(seen["worker_pid"], signal.SIGKILL)
        except ProcessLookupError:
            continue
        eventually(lambda pid=seen["worker_pid"]: status()["worker_pid"] != pid, 30)
    assert ended()["state"] == "finished"
    assert result(tmp_path) == wanted
    last = status()
    assert last["progress"]["step"] == STEPS
    assert last["model_path"] == str(tmp_path / "result.json")
    assert last["result"] == {"loss": 0.5}
    assert printed().count("attached") >= 4


def test_a_program_behind_a_shell_is_attached_and_what_follows_it_does_not_run_after_a_stop(tmp_path: Path) -> None:
    loop = " ".join(write_loop(tmp_path))
    assert memsup("start", "--", "sh", "-c", f"{loop}; sleep 1; touch after", cwd=tmp_path).returncode == 0
    trains_beyond(3)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "with the verified checkpoint" in stopped.stdout
    assert not (tmp_path / "after").exists()


def test_sigterm_is_a_boundary_with_a_checkpoint_and_a_child_that_was_forked_dies_of_it(tmp_path: Path) -> None:
    """As at a shutdown; what a program forks, such as a loader, is ended by its parent with the same signal."""
    forks = (
        "if run.step == 5:\n    child = os.fork()\n    if child == 0:\n        assert not run.is_attached\n"
        "        run.tell(loss=1)\n        time.sleep(1000)\n"
        "    time.sleep(0.1)\n    os.kill(child, 15)\n    print('child', os.waitpid(child, 0)[1], flush=True)"
    )
    command = write_loop(tmp_path)
    assert memsup("start", "--", *command, cwd=tmp_path, IN_A_STEP=forks, EVERY_S="1000").returncode == 0
    seen = trains_beyond(10)
    assert "child 15" in printed()
    os.kill(seen["worker_pid"], signal.SIGTERM)
    again = until(lambda now: is_attached(now) and now["worker_pid"] != seen["worker_pid"], 30)
    assert again["checkpoint"]["step"] >= seen["progress"]["step"]
    assert again["restarts"] == 0
    assert memsup("stop").returncode == 0


def test_of_two_processes_the_first_is_attached_and_the_other_told_that_it_is_not(tmp_path: Path) -> None:
    loop = " ".join(write_loop(tmp_path))
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "loop.py").write_text(LOOP)
    both = f"{loop} & while ! grep -q attached first; do sleep 0.05; done; cd second && {loop}; wait"
    both = both.replace("loop.py &", "loop.py > first &", 1)
    assert memsup("start", "--", "sh", "-c", both, cwd=tmp_path, EVERY_S="1000").returncode == 0
    assert ended()["state"] == "finished"
    assert "fenced, not attached: another process of the same command is attached" in printed()
    assert "begins at step 0 alone" in printed()
    assert (tmp_path / "second" / "result.json").exists()


FINISHES_IN_ANY_CASE = """
import json, os, time
import memsup

seen = []

def save(folder):
    with open(os.path.join(folder, "state.pt"), "w") as file:
        json.dump(seen, file)

def load(folder):
    with open(os.path.join(folder, "state.pt")) as file:
        seen.extend(json.load(file))

run = memsup.guard(save=save, load=load)
os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
try:
    for batch in run.steps(range(1000)):
        seen.append(batch)
        time.sleep(0.01)
except SystemExit:
    print("caught", flush=True)
finally:
    run.finish("seen")
"""


def test_what_is_told_to_leave_has_not_finished_whatever_it_calls_then_and_goes_on_though_it_went_elsewhere(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mein 训练"
    folder.mkdir()
    (folder / "train.py").write_text(FINISHES_IN_ANY_CASE)
    assert memsup("start", "--", *BARE_PYTHON, "train.py", cwd=folder).returncode == 0
    trains_beyond(3)
    stopped = memsup("stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    stands = status()
    assert (stands["state"], stands["exit_code"]) == ("stopped", 75)
    assert "caught" in printed()
    assert memsup("start").returncode == 0
    trains_beyond(stands["progress"]["step"])
    assert memsup("stop").returncode == 0
    saved = Path(status()["checkpoint"]["path"]) / "state.pt"
    assert json.loads(saved.read_text()) == list(range(step_of(status())))


def test_what_other_programs_of_the_command_do_changes_nothing_of_what_is_known_of_the_first(tmp_path: Path) -> None:
    """It is through, and says so when it is called again. The next one is a training of its own; where that has not ended well,
    a third is not attached, and orders that nobody can take are answered so.
    """
    loop = " ".join(write_loop(tmp_path))
    for name in ("second.py", "third.py"):
        (tmp_path / name).write_text(LOOP)
    second, third = (loop.replace("loop.py", name) for name in ("second.py", "third.py"))
    script = f"{loop}; {loop}; NO_FINISH= {second}; {third}; while ! test -e go; do sleep 0.05; done"
    assert memsup("start", "--", "sh", "-c", script, cwd=tmp_path, STEP_S="0", EVERY_S="0.02").returncode == 0
    eventually(lambda: "begins at step 0 alone" in printed(), 30)
    assert "begins at step 200 attached" in printed()
    assert "complete at step 200, so no step is left" in printed()
    assert printed().count("begins at step 0 attached") == 2
    assert "another program of the same command has begun its training and not ended it" in printed()
    seen = until(lambda seen: seen["program"]["not_attached"] == "other_program")
    assert step_of(seen) == 2 * STEPS, "the steps of both"
    refused = memsup("checkpoint")
    assert refused.returncode == 1
    assert "not attached to this command any more" in refused.stderr
    (tmp_path / "go").touch()
    assert ended()["state"] == "finished"


def test_when_the_supervisor_dies_the_program_saves_and_leaves_and_the_next_start_goes_on(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "alone")
    assert memsup("start", "--", *write_loop(tmp_path), cwd=tmp_path, EVERY_S="1000").returncode == 0
    seen = trains_beyond(10)
    eventually(lambda: is_attached(json.loads(run_paths("default").status.read_bytes())))
    os.kill(seen["pid"], signal.SIGKILL)
    assert memsup("start").returncode == 0
    assert trains_beyond(0)["checkpoint"]["step"] >= seen["progress"]["step"]
    assert ended()["state"] == "finished"
    assert result(tmp_path) == wanted


def test_the_newest_checkpoint_is_damaged_and_the_one_before_is_used(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path / "alone")
    assert memsup("start", "--", *write_loop(tmp_path), cwd=tmp_path).returncode == 0
    trains_beyond(30)
    assert memsup("stop").returncode == 0
    newest = Path(status()["checkpoint"]["path"])
    content = bytearray((newest / "model.json").read_bytes())
    content[20] ^= 1
    (newest / "model.json").write_bytes(content)
    assert memsup("start").returncode == 0
    assert ended()["state"] == "finished"
    assert result(tmp_path) == wanted
    told = [line["event"] for line in ledger()]
    assert {"checkpoint_damaged", "checkpoint_used"} <= set(told)
    assert (newest.parent / f"damaged-{newest.name}").exists()


@pytest.mark.slow
def test_a_step_that_fails_each_time_is_given_up_and_an_end_with_steps_left_is_not_finished(tmp_path: Path) -> None:
    command = write_loop(tmp_path)
    fails = "if run.step == 12: raise ValueError('no such word')"
    assert memsup("start", "--", *command, cwd=tmp_path, IN_A_STEP=fails).returncode == 0
    seen = ended()
    assert seen["state"] == "failed"
    assert "The program ended with ValueError after step 12: no such word" in seen["failure"]
    assert f"has failed {FAILURES_OF_A_STEP} times" in seen["failure"]

    early = "if run.step == 12: sys.exit(0)"
    assert memsup("start", "--fresh", "--", *command, cwd=tmp_path, IN_A_STEP=early).returncode == 0
    seen = ended()
    assert seen["state"] == "failed"
    assert "by itself at step 12 of 200, without a call of run.finish" in seen["failure"]
    assert memsup("wait").returncode == 1


def test_nobody_else_is_attached_and_a_command_that_calls_nothing_is_fenced_as_ever(tmp_path: Path) -> None:
    """Neither garbage on the socket, nor a process outside the fence that knows the run's number, and is told so at once; nor
    `python -I`, which looks at no variable.
    """
    program = "import time\ntry:\n    import memsup\nexcept ImportError:\n    print('alone', flush=True)\ntime.sleep(1000)"
    assert memsup("start", "--", BARE_PYTHON[0], "-I", "-S", "-c", program, cwd=tmp_path).returncode == 0
    eventually(lambda: "alone" in printed())
    record = read_record(run_paths("default").record)
    assert record is not None
    hello = zmtp.message(m.encode(m.Hello(pid=os.getpid(), run_id=record.run_id)))
    finished = zmtp.message(m.encode(m.Finished(model_path="/x", metrics={}, steps=1, samples=1)))
    file = str(run_paths("default").runtime / WORKER_SOCKET)
    for said in (os.urandom(500), zmtp.opening(b"DEALER") + hello + finished):
        with socket.socket(socket.AF_UNIX) as stranger:
            folder = os.open(os.path.dirname(file), os.O_RDONLY)
            stranger.connect(f"/proc/self/fd/{folder}/{WORKER_SOCKET}")
            os.close(folder)
            stranger.sendall(said)
            stranger.settimeout(5)
            while stranger.recv(4096):  # what is said by the door; then the end
                pass
            assert status()["program"]["attached"] is False
    assert "fenced only" in memsup("status").stdout
    for refused in (("checkpoint",), ("pause", "--release")):
        done = memsup(*refused)
        assert done.returncode == 1
        assert "nothing in it has called memsup.guard so far" in done.stderr
    assert memsup("pause").returncode == 0
    assert memsup("resume").returncode == 0
    stopped = memsup("stop")
    assert "begins the command anew" in stopped.stdout
    assert not [line for line in ledger() if line["event"] == "attached"]


def test_what_a_person_has_on_the_path_stays_there_and_another_memsup_within_works(tmp_path: Path) -> None:
    """Behind the folder that has the link and nothing else."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_module.py").write_text("value = 7\n")
    program = (
        "import json, memsup, os, own_module, subprocess, sys; assert own_module.value == 7; "
        "first = os.environ['PYTHONPATH'].split(':')[0]; assert os.listdir(first) == ['memsup'], first; "
        f"sys.exit(subprocess.run({[*MEMSUP, '--help']!r}).returncode)"
    )
    started = memsup("start", "--", sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert started.returncode == 0
    assert ended()["state"] == "finished", printed()


def test_a_module_behind_a_console_script_is_attached_and_goes_on_with_the_variables_of_its_first_start(tmp_path: Path) -> None:
    """As `llamafactory-cli train`: a script of two lines, which starts `python -m package.cli` as a process of its own."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    write_loop(tmp_path)
    (tmp_path / "loop.py").rename(tmp_path / "package" / "cli.py")
    script = tmp_path / "tune-cli"
    called = [*BARE_PYTHON, "-m", "package.cli", "train"]
    script.write_text(f"#!{sys.executable} -S\nimport subprocess, sys\nsys.exit(subprocess.run({called!r}).returncode)\n")
    script.chmod(0o755)
    first = {"EPOCHS": "3", "STEP_S": "0.02", "MY_TOKEN": "not-to-be-written"}
    assert memsup("start", "--", str(script), "train", cwd=tmp_path, **first).returncode == 0
    trains_beyond(3)
    assert "not-to-be-written" not in run_paths("default").record.read_text()
    stopped = memsup("stop")
    assert "with the verified checkpoint" in stopped.stdout, stopped.stdout + stopped.stderr
    again = memsup("start", STEP_S="0")
    assert again.returncode == 0
    assert "what was set when it was first started, and is not now: EPOCHS." in again.stderr
    assert "used as it is now: STEP_S." in again.stderr
    assert "and not now: MY_TOKEN. memsup keeps no secrets" in again.stderr
    assert ended()["state"] == "finished", printed()
    assert status()["progress"]["step"] == 3 * 50
    assert result(tmp_path)
    begun = [int(line.split("begins at step ")[1].split()[0]) for line in printed().splitlines() if "begins at step" in line]
    assert begun[-1] > 3


SEVERAL = """
import json, os, random, sys, time
import memsup

results = {}
for rate in (1, 2, 3):
    model = {"weight": 0.0}

    def save(folder):
        with open(os.path.join(folder, "model.json"), "w") as file:
            json.dump(model, file)

    def load(folder):
        with open(os.path.join(folder, "model.json")) as file:
            model.update(json.load(file))

    random.seed(rate)
    run = memsup.guard(save=save, load=load, save_every_s=0.1)
    with open("begun", "a") as file:
        print(rate, run.step, file=file)
    for number in run.steps(range(20)):
        model["weight"] += rate * random.random()
        time.sleep(0.01)
        if rate == 2 and run.step == 15 and not os.path.exists("died"):
            open("died", "w").close()
            os.kill(os.getpid(), 9)
    for number in run.steps(range(5), epochs=2):
        model["weight"] -= random.random()
        if rate == 3 and run.step == 27 and not os.path.exists("failed"):
            open("failed", "w").close()
            raise ValueError("once")
    results[rate] = model["weight"]
    run.finish()
with open("result.json", "w") as file:
    json.dump(results, file)
"""


def test_a_sweep_in_one_program_with_two_loops_in_each_is_gone_on_with_where_it_died(tmp_path: Path) -> None:
    """What was complete is not done again, and what follows begins where it would have."""
    for name in ("alone", "guarded"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sweep.py").write_text(SEVERAL)
    for done in ("died", "failed"):
        (tmp_path / "alone" / done).touch()
    subprocess.run([sys.executable, "sweep.py"], cwd=tmp_path / "alone", check=True, timeout=60)
    started = memsup("start", "--wait", "--", *BARE_PYTHON, "sweep.py", cwd=tmp_path / "guarded")
    assert started.returncode == 0, started.stderr + printed()
    assert result(tmp_path / "guarded") == result(tmp_path / "alone")
    begun = [line.split() for line in (tmp_path / "guarded" / "begun").read_text().splitlines()]
    assert [rate for rate, _ in begun] == ["1", "2", "1", "2", "3", "1", "2", "3"]
    assert [step for rate, step in begun if rate == "1"] == ["0", "30", "30"]
    assert begun[6] == ["2", "30"]
    assert "training 2 is complete at step 30" in printed()
    last = status()
    assert (step_of(last), last["progress"]["total_steps"], last["restarts"]) == (90, 90, 2)
    assert {"1", "2", "3"} == {place_in(str(path)).training for path in run_paths("default").checkpoints.iterdir()}


ENDS = """
import os, time
import memsup

run = memsup.guard(save=lambda folder: open(os.path.join(folder, "x"), "w").close(), load=print, save_every_s=0.01)
exec(os.environ["THEN"])
"""


FAILS_IN_A_TRY = """
try:
    for _ in run.steps(range(9)):
        time.sleep(0.01)
        if run.step == 5:
            raise ValueError("no")
finally:
    run.finish("x")
"""


@pytest.mark.parametrize(
    ("then", "failure", "printed_is"),
    [
        ("memsup.guard(save=print, load=print)", "before the training before it was complete", ""),
        ("run.finish()\nmemsup.guard(save=print, load=print, name='1')", "twice for the training '1'", ""),
        (FAILS_IN_A_TRY, "Step 5 has failed", "run.finish was called while ValueError is on its way"),
    ],
)
def test_what_makes_no_sense_ends_at_once_and_what_did_not_end_well_is_not_complete(
    tmp_path: Path, then: str, failure: str, printed_is: str
) -> None:
    (tmp_path / "train.py").write_text(ENDS)
    assert memsup("start", "--", *BARE_PYTHON, "train.py", cwd=tmp_path, THEN=then).returncode == 0
    seen = ended()
    assert seen["state"] == "failed"
    assert failure in seen["failure"]
    assert printed_is in printed()


WAITS = """
class Slow:
    def __iter__(self):
        yield 1
        yield 2
        print("waits", flush=True)
        time.sleep(3600)

for batch in run.steps(Slow(), total=3):
    pass
"""


def test_orders_are_carried_out_while_data_is_waited_for(tmp_path: Path) -> None:
    """The loader gives its third batch after an hour; what is held, saved and left is what the second step has left."""
    (tmp_path / "train.py").write_text(ENDS)
    assert memsup("start", "--", *BARE_PYTHON, "train.py", cwd=tmp_path, THEN=WAITS).returncode == 0
    eventually(lambda: "waits" in printed(), 30)
    until(lambda seen: step_of(seen) == 2)
    assert memsup("pause").returncode == 0
    assert status()["progress"]["phase"] == "holding"
    assert memsup("resume").returncode == 0
    saved = memsup("checkpoint", "--json")
    assert saved.returncode == 0, saved.stderr
    stopped = memsup("stop")
    assert "at step 2 of 3, with the verified checkpoint of step 2" in stopped.stdout, stopped.stdout + stopped.stderr
    assert status()["exit_code"] == 75


NOTHING_TO_SAVE = """
import memsup, time

run = memsup.guard()
run.total_steps = 10**6
while True:
    run.boundary()
    time.sleep(0.01)
"""


def test_a_program_with_nothing_to_save_says_so_and_one_that_is_a_rank_says_that(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(NOTHING_TO_SAVE)
    assert memsup("start", "--", *BARE_PYTHON, "train.py", cwd=tmp_path).returncode == 0
    seen = trains_beyond(3)
    assert (seen["program"]["seam"], seen["program"]["saves"], seen["program"]["cuts"]) == ("boundary", False, False)
    assert seen["program"]["not_cut"] == "no_backward"
    assert seen["progress"]["total_steps"] == 10**6
    assert "has given memsup nothing to save" in memsup("status").stdout
    refused = memsup("checkpoint")
    assert refused.returncode == 1
    assert "nothing to save" in refused.stderr
    assert memsup("stop").returncode in {0, 1}
    assert memsup("start", "--fresh", "--", *BARE_PYTHON, "train.py", cwd=tmp_path, WORLD_SIZE="2").returncode == 0
    seen = until(lambda seen: seen["program"] and seen["program"]["not_attached"] is not None)
    assert seen["program"]["not_attached"] == "several_ranks"
    assert "fenced only, since it is one of several ranks" in memsup("status").stdout
