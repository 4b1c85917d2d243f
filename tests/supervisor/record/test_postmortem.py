"""The next start says what the last one died of, with the evidence, and never blames memory without proof."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.supervisor.decide.readings import MemoryReading
from memsup.supervisor.record import evidence as collecting
from memsup.supervisor.record.blackbox import BlackBox, Facts, Frame, Heat, Mark, Memory, Recording, read_blackbox
from memsup.supervisor.record.postmortem import Cause, Evidence, Line, Verdict, judge, last_minute, told

THEN, NOW = "boot-then", "boot-now"
DIED = 1_000_000.0
PID = 4321


def frame(
    ago_s: float = 0.0, *, boot: str = THEN, mark: str | None = None, heat: Heat | None = None, free_mib: int = 9000
) -> Frame:
    return Frame(
        boot=boot,
        at=DIED - ago_s,
        mono=5000 - ago_s,
        pid=PID,
        mark=mark,
        reason="stopped by the user" if mark else None,
        total_mib=16_000,
        facts=Facts(
            state="running", phase="training", step=4211, limit_mib=12_000, heats=(heat,) if heat else (), disk_free_mib=900
        ),
        trace=(Memory(100, 7000, free_mib, 0.0),),
    )


def evidence(**changes: object) -> Evidence:
    base = Evidence(
        frames=tuple(frame(ago) for ago in range(60, -1, -1)),
        boot=NOW,
        now_unix_s=DIED + 780,
        checkpoint_step=4100,
        checkpoint_path="/c/step-4100",
        checkpoint_unix_s=DIED - 240,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def line(text: str, after_s: float = 0.0) -> Line:
    return Line(DIED + after_s, text)


OOM_US = line(f"kernel: Out of memory: Killed process {PID} (python3) total-vm:99kB, anon-rss:8kB, oom_score_adj:0")
OOM_OTHER = line("kernel: Out of memory: Killed process 99 (chrome) total-vm:99kB, anon-rss:8kB, oom_score_adj:300", -30)
OOM_CONSTRAINT = line(f"oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),task_memcg=/x,task=python3,pid={PID},uid=1000")
PANIC = line("Kernel panic - not syncing: Fatal exception in interrupt", 1)
OOM_PANIC = line("Kernel panic - not syncing: Out of memory: system-wide panic_on_oom is enabled", 1)
HOT = line("thermal thermal_zone0: acpitz: critical temperature reached, shutting down", 1)
SHUTDOWN = line("systemd[1]: Reached target shutdown.target - System Shutdown.", 4)
LATER = line("CRON[77]: pam_unix(cron:session): session opened for user root", 3600)
STUCK = line("watchdog: BUG: soft lockup - CPU#3 stuck for 26s! [python3:4400]", -20)
XID = line("NVRM: Xid (PCI:0000:01:00): 79, pid=4400, GPU has fallen off the bus.", -1)
EARLYOOM = line(f'earlyoom[612]: sending SIGTERM to process {PID} uid 1000 "python3": badness 900, VmRSS 99 MiB', 0.5)
SEGFAULT = line(f"python3[{PID}]: segfault at 0 ip 00007f sp 00007f error 4 in libzmq.so", 0.1)


@dataclass(frozen=True)
class Case:
    """A death and what is to be said about it."""

    name: str
    evidence: Evidence
    cause: Cause
    sure: bool
    machine: bool
    says: str


CASES = [
    Case(
        "a clean stop", evidence(frames=(frame(1), frame(0, mark=Mark.CLEAN))), Cause.CLEAN, True, False, "stopped by the user"
    ),
    Case("kill -9, the machine lived on", evidence(boot=THEN, kernel=()), Cause.KILLED, False, False, "ended without a word"),
    Case("a crash of ours", evidence(boot=THEN, kernel=(SEGFAULT,)), Cause.KILLED, True, False, "crashed"),
    Case(
        "the kernel's OOM killer took us",
        evidence(boot=THEN, kernel=(OOM_US,)),
        Cause.KERNEL_OOM,
        True,
        False,
        "memory had run out",
    ),
    Case(
        "the same, in the other spelling",
        evidence(boot=THEN, kernel=(OOM_CONSTRAINT,)),
        Cause.KERNEL_OOM,
        True,
        False,
        "memory",
    ),
    Case("the OOM killer took another", evidence(boot=THEN, kernel=(OOM_OTHER,)), Cause.KILLED, False, False, "without a word"),
    Case(
        "earlyoom took us",
        evidence(boot=THEN, journal=(EARLYOOM,)),
        Cause.KILLED,
        True,
        False,
        "earlyoom killed the supervisor",
    ),
    Case("OOM, then the machine went down", evidence(kernel=(OOM_US,)), Cause.KERNEL_OOM, True, True, "memory had run out"),
    Case("a panic in the journal", evidence(kernel=(PANIC,)), Cause.PANIC, True, True, "panic"),
    Case("a panic in pstore alone", evidence(crash_dumps=(PANIC,)), Cause.PANIC, True, True, "panic"),
    Case(
        "a panic of last month", evidence(crash_dumps=(replace(PANIC, at=DIED - 9e5),)), Cause.POWER, False, True, "its power"
    ),
    Case("panic_on_oom", evidence(crash_dumps=(OOM_PANIC,)), Cause.PANIC, True, True, "memory had run out"),
    Case(
        "the kernel shut down for heat", evidence(kernel=(HOT,), journal=(HOT, SHUTDOWN)), Cause.THERMAL, True, True, "too hot"
    ),
    Case(
        "a GPU at its shutdown temperature, then nothing",
        evidence(frames=(frame(heat=Heat(index=0, celsius=101, slowdown_c=97, shutdown_c=102)),)),
        Cause.THERMAL,
        False,
        True,
        "most likely because it was too hot: GPU 0 was at 101 °C and shuts down at 102 °C",
    ),
    Case(
        "84 °C is no reason",
        evidence(frames=(frame(heat=Heat(index=0, celsius=84, slowdown_c=97, shutdown_c=102)),)),
        Cause.POWER,
        False,
        True,
        "its power was cut, or it was reset, crashed or hung",
    ),
    Case("an orderly reboot", evidence(journal=(SHUTDOWN,)), Cause.KILLED, True, False, "shut down in good order"),
    Case(
        "kill -9, and a reboot hours later",
        evidence(kernel=(), journal=(LATER,)),
        Cause.KILLED,
        False,
        False,
        "started again later",
    ),
    Case("a soft lockup, then nothing", evidence(kernel=(STUCK,)), Cause.HANG, False, True, "something was stuck"),
    Case(
        "the supervisor stood still, then nothing",
        evidence(frames=(frame(75), frame(74), frame(2), frame(1), frame(0))),
        Cause.HANG,
        False,
        True,
        "had stood still for 1 min 12 s",
    ),
    Case("nothing at all", evidence(), Cause.POWER, False, True, "nothing here can tell"),
    Case("the GPU fell off the bus, then nothing", evidence(kernel=(XID,)), Cause.POWER, False, True, "its power was cut"),
    Case(
        "almost no RAM left, then nothing",
        evidence(frames=(frame(free_mib=12),)),
        Cause.POWER,
        False,
        True,
        "nothing here can tell",
    ),
    Case("only torn blocks", evidence(frames=(), broken=5), Cause.UNKNOWN, False, False, "nothing can be said"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_death_is_called_what_it_was(case: Case) -> None:
    """Cause, certainty, and whether the whole machine went down."""
    verdict = judge(case.evidence)
    assert verdict is not None
    assert (verdict.cause, verdict.sure, verdict.machine) == (case.cause, case.sure, case.machine)
    assert case.says in verdict.sentence
    assert told(case.evidence, verdict)[0] == verdict.sentence


def test_a_first_start_has_nothing_to_explain() -> None:
    """No frames, no torn blocks: no verdict."""
    assert judge(evidence(frames=())) is None


def test_the_work_that_is_lost_is_told() -> None:
    """From the newest checkpoint to the last record; where there is no checkpoint, it begins again."""
    found = evidence()
    verdict = judge(found)
    assert verdict is not None
    assert verdict.lost_s == 240
    text = told(found, verdict)
    assert "Last record: 13 min ago." in text
    assert text[-1].startswith("It goes on from the checkpoint of step 4,100 (to be verified when it is loaded), 4 min of work")
    assert told(found, verdict, is_command=True) == text, "a command has one where memsup has saved it"
    none = evidence(checkpoint_step=None, checkpoint_path=None, checkpoint_unix_s=None)
    verdict = judge(none)
    assert verdict is not None
    assert told(none, verdict)[-1] == "There is no checkpoint yet: it begins again."
    assert told(none, verdict, is_command=True)[-1] == "The command is begun anew."
    paused = told(none, replace(verdict, machine=False), is_command=True, is_paused=True)[-1]
    assert paused == "The command is guarded again where it still stands, as it was paused; else it is begun anew."


def test_the_last_minute_is_shown() -> None:
    """State and step, the worker's memory, the machine's, the disk's free space, and the temperatures."""
    frames = tuple(
        frame(ago, heat=Heat(index=0, celsius=83.0, power_w=170.0), free_mib=9000 - 60 + int(ago)) for ago in range(90, -1, -1)
    )
    lines = list(last_minute(frames))
    assert lines[0] == "running (training), step 4,211"
    assert lines[1].startswith("worker 6.84 GiB → 6.84 GiB of 11.7 GiB")
    assert "at least 8.73 GiB" in lines[2]
    assert lines[-2] == "900 MiB free on the disk of the run's state"
    assert lines[-1] == "GPU 0 83 °C, 170 W"


def test_what_could_not_be_read_is_said() -> None:
    """A verdict without a journal tells that there was none."""
    found = evidence(unread=("There is no journal here (journalctl is not installed).",))
    verdict = judge(found)
    assert verdict is not None
    assert any("There is no journal here" in text for text in told(found, verdict))


# --------------------------------------------------------------------------------------------------------------------
# Never memory without proof

texts = st.one_of(
    st.sampled_from(
        [
            item.text
            for item in (
                OOM_US,
                OOM_OTHER,
                OOM_CONSTRAINT,
                PANIC,
                OOM_PANIC,
                HOT,
                SHUTDOWN,
                LATER,
                STUCK,
                XID,
                EARLYOOM,
                SEGFAULT,
            )
        ]
        + [
            "memory",
            "Out of memory",
            "page allocation failure: order:0",
            "Memory cgroup out of memory",
            "oom",
            "python3 invoked oom-killer",
        ]
        + [
            "Out of memory: Killed process 43210 (python3)",
            "Out of memory: Killed process 432 (python3)",
            f"killed process {PID}",
        ]
        + [f"x: Out of memory: Killed process {PID}9 (y)", "systemd-oomd[5]: Killed /user.slice due to memory pressure"]
    ),
    st.text(max_size=80),
)
lines = st.one_of(
    st.none(), st.lists(st.builds(Line, st.one_of(st.none(), st.floats(DIED - 1e4, DIED + 1e4)), texts), max_size=6).map(tuple)
)
optional = st.one_of(st.none(), st.integers(0, 2**30))
frames = st.lists(
    st.builds(
        Frame,
        boot=st.sampled_from([THEN, NOW, "other"]),
        at=st.floats(DIED - 1e4, DIED),
        mono=st.floats(0, 1e6),
        pid=st.sampled_from([PID, 99, 1]),
        mark=st.sampled_from([None, None, None, Mark.START, Mark.CLEAN, "odd"]),
        reason=st.one_of(st.none(), st.just("stopped")),
        total_mib=optional,
        swap_free_mib=optional,
        fence_oom_kills=optional,
        facts=st.one_of(
            st.none(),
            st.builds(
                Facts,
                state=st.sampled_from(["running", "recovering"]),
                rung=optional,
                heats=st.lists(
                    st.builds(
                        Heat,
                        index=st.integers(-1, 2),
                        celsius=st.floats(0, 150),
                        shutdown_c=st.one_of(st.none(), st.just(102.0)),
                    ),
                    max_size=2,
                ).map(tuple),
            ),
        ),
        trace=st.lists(
            st.builds(Memory, st.integers(0, 999), optional, optional, st.one_of(st.none(), st.floats(0, 1))), max_size=3
        ).map(tuple),
    ),
    max_size=5,
).map(tuple)
anything = st.builds(
    Evidence,
    frames=frames,
    broken=st.integers(0, 3),
    boot=st.just(NOW),
    now_unix_s=st.just(DIED + 1000),
    kernel=lines,
    journal=lines,
    crash_dumps=lines,
    checkpoint_step=optional,
    checkpoint_unix_s=st.one_of(st.none(), st.floats(0, 2e6)),
    unread=st.lists(st.just("something could not be read"), max_size=1).map(tuple),
)


def proves_memory(found: Evidence) -> bool:
    """The kernel or earlyoom wrote that it ended this very supervisor, or the machine, because memory ran out."""
    pid = found.frames[-1].pid
    written = [item.text for source in (found.kernel, found.journal, found.crash_dumps) for item in source or ()]
    return any(
        re.search(rf"[Oo]ut of memory.*[Kk]illed process {pid}\b", text)
        or re.search(rf"oom-kill:.*pid={pid}\b", text)
        or re.search(rf"earlyoom.*to process {pid}\b", text)
        or re.search(r"Kernel panic - not syncing: .*(Out of memory|deadlocked on memory)", text)
        for text in written
    )


@settings(max_examples=200)
@given(anything)
def test_memory_is_never_blamed_without_proof(found: Evidence) -> None:
    """Whatever the readings were and whatever else was logged: the verdict says "memory" only where somebody wrote it down."""
    verdict = judge(found)
    if verdict is None:
        assert not found.frames
        return
    told(found, verdict)
    if "memory" in verdict.sentence.lower() or verdict.cause is Cause.KERNEL_OOM:
        assert proves_memory(found)
        assert verdict.sure


@settings(max_examples=100)
@given(anything)
def test_what_is_called_sure_has_its_record(found: Evidence) -> None:
    """Certainty without a quoted line exists only for a clean end, which memsup itself noted."""
    verdict = judge(found)
    if verdict is not None and verdict.sure and verdict.cause is not Cause.CLEAN:
        assert any(text.startswith(("kernel: ", "journal: ", "crash dump: ")) for text in verdict.evidence_for)


def test_the_table_has_every_cause() -> None:
    """Each cause that can be said is staged above."""
    assert {case.cause for case in CASES} == set(Cause)


# --------------------------------------------------------------------------------------------------------------------
# Collecting


def written_box(path: Path, boot: str, *, clean: bool = False) -> Recording:
    box = BlackBox(path, boot)
    box.note(MemoryReading(at_s=1.0, worker_bytes=2**30))
    box.flush(1.0, 1.0)
    if clean:
        box.close_cleanly(2.0, 2.0, "done")
    return read_blackbox(path)


def this_boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def test_a_collection_on_this_machine_ends_in_time_and_says_what_it_could_not_read(tmp_path: Path) -> None:
    """With or without a journal, as root or not: a verdict, and a sentence for each source that was closed."""
    history = written_box(tmp_path / "box", this_boot())
    found = collecting.collect(history, boot=this_boot(), now_unix_s=100.0, checkpoint=None)
    verdict = judge(found)
    assert isinstance(verdict, Verdict)
    assert not verdict.machine
    assert found.kernel is not None or any("kernel" in text.lower() or "journal" in text for text in found.unread)
    assert found.journal is not None or any("journal" in text for text in found.unread)


def test_after_a_clean_end_no_log_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary start runs no journalctl."""

    def run(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is to be run")

    monkeypatch.setattr(subprocess, "run", run)
    found = collecting.collect(written_box(tmp_path / "box", "b", clean=True), boot="b", now_unix_s=100.0, checkpoint=None)
    verdict = judge(found)
    assert verdict is not None
    assert verdict.cause is Cause.CLEAN


def test_a_journal_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start is not held up by a log: a journalctl that hangs is ended at the deadline."""
    fake = tmp_path / "bin" / "journalctl"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexec sleep 600\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(collecting, "DEADLINE_S", 0.3)
    boot = this_boot()
    found = collecting.collect(written_box(tmp_path / "box", boot), boot=boot, now_unix_s=100.0, checkpoint=None)
    assert found.journal is None
    assert any("did not answer" in text for text in found.unread)


def test_what_journalctl_prints_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its real format (`-o short-unix`), asked for the boot of the last frame, with a hostile line in it."""
    fake = tmp_path / "bin" / "journalctl"
    fake.parent.mkdir()
    fake.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/asked\n'
        "printf '1700000000.123456 host kernel: Out of memory: Killed process 7 (x)\\n-- Boot abc --\\n\\377garbage\\n'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    history = written_box(tmp_path / "box", "0b4f3b5c-6f2e-4d38-9c5d-0123456789ab")
    found = collecting.collect(history, boot="b", now_unix_s=100.0, checkpoint=None)
    assert found.kernel == (Line(1700000000.123456, "kernel: Out of memory: Killed process 7 (x)"),)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("-b 0b4f3b5c6f2e4d389c5d0123456789ab" in line for line in asked)
    assert [" -k" in line for line in asked] == [True, False]


def test_crash_dumps_are_read_with_their_dates_and_links_are_not_followed(tmp_path: Path) -> None:
    """As pstore has them: one file a part, each line with its time since boot."""
    (tmp_path / "dmesg-efi-1").write_text(
        "Panic#1 Part1\n<6>[  912.000001] usb 1-1: new\n<0>[  913.5] Kernel panic - not syncing: x\n"
    )
    (tmp_path / "link").symlink_to("/etc/passwd")
    unread: list[str] = []
    dumps = collecting._crash_dumps(unread, (tmp_path, tmp_path / "missing"))
    assert dumps is not None
    assert [item.text for item in dumps] == ["Panic#1 Part1", "usb 1-1: new", "Kernel panic - not syncing: x"]
    assert unread == []
