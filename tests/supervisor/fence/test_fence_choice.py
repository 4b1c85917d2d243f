"""Choosing a fence: the best that really works, and a plain clause for each better one that does not."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fenced import MIB, kill, misbehave

import memsup.supervisor.fence.base
from memsup.supervisor.fence import Chosen, FenceError, Kind, choose_fence, launch, rehearse
from memsup.supervisor.fence.base import WORKER_OOM_SCORE_ADJ
from memsup.supervisor.fence.rlimit import NoFence, RlimitFence
from memsup.supervisor.kernel.children import spawn
from memsup.supervisor.kernel.processes import MARK, fence_name

_numbers = itertools.count()


def fresh_run() -> str:
    return f"test_{os.getpid()}_c{next(_numbers)}"


def the_rehearsals_left_nothing(run: str) -> bool:
    return not list(Path("/sys/fs/cgroup").glob(f"*/memsup-{run}_try_*"))


def test_the_fence_chosen_is_the_best_that_passed_and_every_better_one_has_a_reason() -> None:
    run = fresh_run()
    chosen = choose_fence(run, 200 * MIB, device_is_cuda=False)
    kinds = list(Kind)
    assert [kind for kind, _ in chosen.refused] == kinds[: kinds.index(chosen.fence.kind)]
    for _, why in chosen.refused:
        assert len(why) > 10
        assert not why.endswith(".")
    assert chosen.fence.limit_bytes == 200 * MIB
    assert chosen.fence.populated() is False
    assert the_rehearsals_left_nothing(run)
    assert chosen.fence.remove()


def test_with_cuda_no_limit_on_mappings_is_tried() -> None:
    chosen = choose_fence(fresh_run(), 200 * MIB, device_is_cuda=True, among=[Kind.RLIMIT, Kind.NONE])
    assert chosen.fence.kind is Kind.NONE
    assert "CUDA" in chosen.refused[0][1]


def test_none_is_what_remains() -> None:
    chosen = choose_fence(fresh_run(), 200 * MIB, device_is_cuda=True, among=[Kind.RLIMIT])
    assert chosen.fence.kind is Kind.NONE


@pytest.mark.parametrize("kind", [Kind.RLIMIT, Kind.NONE])
def test_without_a_cgroup_the_rehearsal_still_puts_finds_freezes_and_kills(kind: Kind) -> None:
    chosen = choose_fence(fresh_run(), 300 * MIB, device_is_cuda=False, among=[kind])
    assert (chosen.fence.kind, chosen.refused) == (kind, [])


def test_a_rehearsal_that_fails_says_at_what() -> None:
    class Leaky(NoFence):
        def launch_prefix(self) -> list[str]:
            return ["env", "-u", MARK]  # what is started so is not found inside

    with pytest.raises(FenceError, match="was not found there"):
        rehearse(Leaky(fresh_run(), 1 << 30))

    class Wrong(RlimitFence):
        def launch_prefix(self) -> list[str]:
            self.limit_bytes = 5 << 30
            prefix = super().launch_prefix()
            self.limit_bytes = 1 << 30
            return prefix

    with pytest.raises(FenceError, match="had a limit of 5368709120 bytes, not 1073741824"):
        rehearse(Wrong(fresh_run(), 1 << 30))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to become somebody else")
@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="needs a Python that every user may run")
def test_an_ordinary_user_without_systemd_gets_rlimits_and_the_reason(tmp_path: Path) -> None:
    """Run as nobody, with the system's Python and nothing of memsup's dependencies."""
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs this machine: an ordinary user may well get a scope")
    package = Path(memsup.supervisor.fence.base.__file__).parents[1]
    links = Path("/tmp") / f"memsup-test-{os.getpid()}"  # tmp_path is closed to nobody
    (links / "memsup").mkdir(parents=True)
    links.chmod(0o755)
    try:
        for name in ("supervisor", "shared"):
            (links / "memsup" / name).symlink_to(package.parent / name)
        code = (
            "import json; from memsup.supervisor.fence import choose_fence\n"
            "chosen = choose_fence('test_nobody', 200 << 20, device_is_cuda=False)\n"
            "print(json.dumps([chosen.fence.kind, chosen.refused]))"
        )
        nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i", "PATH=/usr/bin:/bin"]
        if subprocess.run([*nobody, "test", "-r", str(package / "launch.py")], check=False).returncode != 0:
            pytest.skip("NOT RUN: nobody may not read this folder")
        command = [*nobody, f"PYTHONPATH={links}", "/usr/bin/python3", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    finally:
        shutil.rmtree(links)
    kind, refused = json.loads(done.stdout)
    assert kind == "rlimit"
    assert [name for name, _ in refused] == ["scope", "cgroup2", "cgroup1"]
    assert dict(refused)["cgroup1"] in {
        "only root may make a cgroup v1",
        "no cgroup v1 with a memory controller is mounted here",
    }


# --------------------------------------------------------------------------------------------------------------------
# The launcher


def launched(*arguments: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-S", launch.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **popen)


def test_a_fence_that_cannot_be_entered_starts_nothing(tmp_path: Path) -> None:
    started = tmp_path / "started"
    done = launched("--write", "/sys/fs/cgroup/memsup-not-there/cgroup.procs", "0", "--", "touch", str(started))
    assert done.returncode == launch.COULD_NOT_LAUNCH
    assert "the command was not started" in done.stderr
    assert not started.exists()


def test_a_command_that_does_not_exist_is_named() -> None:
    done = launched("--", "memsup-no-such-command")
    assert done.returncode == launch.COULD_NOT_LAUNCH
    assert "memsup-no-such-command cannot be started: No such file or directory." in done.stderr


def test_the_command_gets_its_arguments_untouched_and_its_own_exit_code() -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(7)"
    done = launched("--oom-score-adj", "700", "--", sys.executable, "-c", code, "--", "--write", "x y", "")
    assert (done.returncode, done.stdout.strip()) == (7, "['--', '--write', 'x y', '']")


def test_the_command_starts_with_clean_signals_a_raised_oom_score_no_core_and_its_own_session() -> None:
    """`nohup` and Python leave signals ignored; a training program under memsup must not inherit that."""

    def spoil() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    # `sh` is what looks, not Python, which ignores SIGPIPE itself as it starts.
    shell = "grep -E '^Sig(Ign|Blk)' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -c; ps -o sid= -p $$; echo $$"
    done = launched("--oom-score-adj", str(WORKER_OOM_SCORE_ADJ), "--", "sh", "-c", shell, preexec_fn=spoil)
    blocked, ignored, score, core, session, pid = done.stdout.split("\n")[:6]
    of_the_c_library = 0b11 << 31  # 32 and 33: nobody else may change them, and whoever started the tests may have left them so
    for mask in (blocked, ignored):
        assert int(mask.split()[1], 16) & ~of_the_c_library == 0, mask
    assert int(score) == WORKER_OOM_SCORE_ADJ
    assert core == "0"
    assert session.strip() == pid


def test_an_oom_score_that_is_higher_already_is_kept() -> None:
    def raise_it() -> None:
        Path("/proc/self/oom_score_adj").write_text("950")

    done = launched("--oom-score-adj", "700", "--", "cat", "/proc/self/oom_score_adj", preexec_fn=raise_it)
    assert done.stdout.strip() == "950"


# --------------------------------------------------------------------------------------------------------------------
# Pure parts


@given(st.text(min_size=1, max_size=100))
def test_any_runs_name_becomes_a_name_that_systemd_and_the_kernel_take(run: str) -> None:
    name = fence_name(run)
    assert re.fullmatch(r"memsup-[A-Za-z0-9_]{1,40}", name)
    assert fence_name(run) == name


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_two_runs_never_share_a_fence(one: str, other: str) -> None:
    assert (fence_name(one) == fence_name(other)) == (one == other)


def test_a_child_started_with_the_prefix_carries_the_mark() -> None:
    fence = NoFence(fresh_run(), 1 << 30)
    child = misbehave(fence)
    stranger = spawn(["sleep", "600"])
    try:
        while child.pid not in fence.pids():
            assert child.exit_code() is None
        assert stranger.pid not in fence.pids()
    finally:
        kill(fence, child)
        assert stranger.exit_code() is None
        stranger.send(signal.SIGKILL)


def test_chosen_is_a_value() -> None:
    fence = NoFence("x", 1)
    assert Chosen(fence, []) == Chosen(fence, [])
