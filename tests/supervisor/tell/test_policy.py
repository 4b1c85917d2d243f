"""People are told what matters, once, and not more often than they can bear."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from memsup.shared.status import (
    ActionStatus,
    CheckpointStatus,
    HoursStatus,
    ProgressStatus,
    RunState,
    Status,
    Trouble,
    TroubleKind,
    WaitingStatus,
    Wanted,
)
from memsup.supervisor.tell.policy import MOST_A_DAY, PAUSED_LONG_S, PING_EVERY_S, Kind, Notice, Policy, Told

DAY = 1_780_012_800.0
"""A midnight, as good as any."""


SILENT = Trouble(TroubleKind.UNRESPONSIVE, "The worker does not answer.")


def status_of(state: RunState = RunState.RUNNING, *troubles: Trouble, **changes: object) -> Status:
    status = Status(
        run="night",
        run_id="abc",
        state=state,
        wanted=Wanted.RUNNING,
        since=DAY,
        progress=ProgressStatus(step=1240, total_steps=6585, loss=0.21, eta_s=7200.0),
        checkpoint=CheckpointStatus(path="/c", step=1200, age_s=60.0, verified=True),
    )
    for name, value in changes.items():
        setattr(status, name, value)
    status.call_for(*troubles)
    return status


class Person:
    """Who gets the messages of a run whose status is looked at once a minute."""

    def __init__(self, told: Told | None = None, begin_s: float = DAY) -> None:
        self.policy, self.now_s = Policy(told or Told()), begin_s
        self.got: list[Notice] = []

    def sees(self, status: Status, minutes: float = 1) -> list[Notice]:
        fresh: list[Notice] = []
        for _ in range(max(1, int(minutes))):
            hours = (self.now_s - DAY) / 3600
            fresh += self.policy.step(self.now_s, int(hours % 24), f"day {int(hours // 24)}", status)
            self.now_s += 60
        self.got += fresh
        return fresh

    @property
    def kinds(self) -> list[Kind]:
        return [notice.kind for notice in self.got]


def test_a_quiet_night_is_a_digest_and_an_end() -> None:
    """From evening to noon: good morning at eight, then finished; nothing else."""
    person = Person(begin_s=DAY + 20 * 3600)
    person.sees(status_of(), minutes=14 * 60)
    person.sees(status_of(RunState.FINISHED, result={"accuracy": 0.931, "majority_accuracy": 0.5, "f1": 0.9}), minutes=300)
    assert person.kinds == [Kind.DIGEST, Kind.FINISHED]
    assert "Step 1,240 of 6,585" in person.got[0].text
    assert "accuracy 93.1 % (always the most frequent label: 50.0 %), f1 0.9." in person.got[1].text


def test_the_end_of_a_command_is_told_in_words_although_it_has_no_metrics() -> None:
    """Apprise takes an empty text for a message that could not be delivered."""
    bare = Status(run="default", run_id="r", state=RunState.FINISHED, wanted=Wanted.RUNNING)
    assert [notice.text for notice in Policy(Told()).step(DAY, 3, "day 0", bare)] == ["It ran to its end."]


def test_a_failure_is_told_with_its_reason_and_once() -> None:
    """Also over a restart of the supervisor."""
    person = Person()
    failed = status_of(RunState.FAILED, Trouble(TroubleKind.FAILED, "The disk is full."), failure="The disk is full.")
    person.sees(failed, minutes=600)
    again = Person(msgspec.json.decode(msgspec.json.encode(person.policy.told), type=Told))
    again.sees(failed, minutes=60)
    assert person.kinds == [Kind.FAILED]
    assert person.got[0].text.startswith("The disk is full.")
    assert again.kinds == []


def test_a_new_run_is_told_anew() -> None:
    """`start --fresh` under the same name."""
    person = Person()
    person.sees(status_of(RunState.FINISHED))
    person.sees(status_of(RunState.FINISHED, run_id="def"))
    assert person.kinds == [Kind.FINISHED, Kind.FINISHED]


def test_after_a_death_of_the_machine_the_verdict_comes_when_training_goes_on() -> None:
    """Not before: it might die again while loading."""
    person = Person()
    person.policy.machine_died(["The machine went down without shutting down.", "It goes on from step 1,200."])
    assert person.sees(status_of(RunState.STARTING), minutes=5) == []
    (notice,) = person.sees(status_of(), minutes=5)
    assert notice.kind is Kind.REVIVED
    assert notice.text.startswith("The machine went down without shutting down.\nIt goes on from step 1,200.")


def test_a_run_that_waits_for_a_person_after_the_machine_died_says_so_when_it_is_stopped() -> None:
    """At once, with what to type, and once."""
    person = Person()
    sentences = ["The machine went down without shutting down.", "It stays stopped. Go on: memsup start"]
    person.policy.machine_died(sentences, waits=True)
    assert person.sees(status_of(RunState.STARTING), minutes=5) == []
    troubles = [Trouble(TroubleKind.MACHINE_DIED, sentences[0]), Trouble(TroubleKind.WAITS, sentences[1])]
    (notice,) = person.sees(status_of(RunState.STOPPED, *troubles), minutes=5)
    assert notice.title.endswith("the machine died, and it waits for you")
    assert notice.text.startswith("\n".join(sentences))


def test_a_forgotten_pause_is_told_after_a_quarter_of_an_hour() -> None:
    """Once for each pause; a short one is nobody's business."""
    person = Person()
    person.sees(status_of(RunState.PAUSED, since=person.now_s), minutes=14)
    person.sees(status_of(), minutes=60)
    person.sees(status_of(RunState.PAUSED, since=person.now_s), minutes=300)
    assert person.kinds == [Kind.PAUSED]
    assert f"{PAUSED_LONG_S / 60:.0f} min" in person.got[0].text


def test_a_run_that_rests_by_its_hours_is_no_forgotten_pause_unless_it_waits_for_a_person() -> None:
    """In the morning it is said what it does; where its hours have an end alone, somebody has to say when it goes on."""
    what = "paused until Sun 23:00, by its hours (23:00 to 07:00)"
    person = Person(begin_s=DAY + 7 * 3600)
    resting = status_of(RunState.PAUSED, hours=HoursStatus(rests=True, until=DAY + 23 * 3600, what=what))
    person.sees(resting, minutes=1600)
    assert person.kinds == [Kind.DIGEST]
    assert f"It is {what}." in person.got[0].text
    person = Person()
    what = "paused until you resume it, by its hours (until 07:00)"
    person.sees(status_of(RunState.PAUSED, since=DAY, hours=HoursStatus(rests=True, until=None, what=what)), minutes=20)
    assert person.kinds == [Kind.PAUSED]
    assert f"It is {what}, that is for 15 min now. Continue with: memsup resume" in person.got[0].text


def test_a_cooling_that_lasts_says_why() -> None:
    person = Person()
    action = ActionStatus(at=DAY, rung="hold", action="pause (hold)", reason="GPU 0 is at 93 °C")
    person.sees(status_of(RunState.COOLING, since=person.now_s, last_action=action), minutes=20)
    assert person.kinds == [Kind.PAUSED]
    assert "GPU 0 is at 93 °C" in person.got[0].text


def test_what_passes_within_a_minute_needs_nobody() -> None:
    """A worker that did not answer for a moment."""
    person = Person()
    person.sees(status_of(RunState.RUNNING, SILENT))
    person.sees(status_of(), minutes=100)
    assert person.kinds == []


def test_the_same_complaint_with_another_number_is_told_once() -> None:
    """The disk has 60, then 59 MiB left."""
    person = Person()
    for mib in range(60, 10, -1):
        disk = Trouble(TroubleKind.DISK, f"The disk has only {mib} MiB left.")
        person.sees(status_of(RunState.RUNNING, disk), minutes=5)
    assert person.kinds == [Kind.ATTENTION]


def test_the_same_words_about_another_device_are_told_again() -> None:
    """GPU 0 and GPU 1 with the same error are two troubles; by their sentences without numbers they were one."""
    person = Person()
    troubles = [Trouble(TroubleKind.GPU_ERROR, f"GPU {index} reported error 63.", f"{index}:63") for index in (0, 1)]
    person.sees(status_of(RunState.RUNNING, troubles[0]), minutes=60)
    person.sees(status_of(RunState.RUNNING, *troubles), minutes=60)
    assert person.kinds == [Kind.ATTENTION, Kind.ATTENTION]
    assert "GPU 0" not in person.got[1].text


def test_a_trouble_whose_sentence_was_improved_is_not_told_again() -> None:
    """What was told is kept by kind: a new version of memsup, or another language, rings nobody for what is known."""
    person = Person()
    person.sees(status_of(RunState.RUNNING, SILENT), minutes=60)
    again = Person(msgspec.json.decode(msgspec.json.encode(person.policy.told), type=Told), person.now_s)
    again.sees(status_of(RunState.RUNNING, Trouble(SILENT.kind, "工作进程没有回应。")), minutes=60)
    assert again.kinds == []


def test_what_an_earlier_version_told_can_be_read() -> None:
    """It kept sentences without their numbers."""
    old = b'{"run_id":"abc","ended":null,"sentences":{"The disk has only # MiB left.":1.0},"sent":[1.0],"digest_day":"day 0"}'
    told = msgspec.json.decode(old, type=Told)
    assert (told.run_id, told.sent, told.troubles) == ("abc", [1.0], {})


def test_a_bad_night_does_not_ring_all_night() -> None:
    """A new complaint every ten minutes: a few messages, and the rest with the digest."""
    person = Person(begin_s=DAY + 20 * 3600)
    for number in range(72):
        complaint = Trouble(TroubleKind.GPU_ERROR, f"complaint {number}", str(number))
        person.sees(status_of(RunState.RUNNING, complaint), minutes=10)
    person.sees(status_of(), minutes=60)
    assert person.kinds.count(Kind.ATTENTION) <= MOST_A_DAY
    digest = next(notice for notice in person.got if notice.kind is Kind.DIGEST)
    assert "Held back: complaint" in digest.text


def test_the_ping_comes_once_a_minute() -> None:
    """However often the loop comes by."""
    policy = Policy(Told())
    assert sum(policy.ping_due(tenth / 10) for tenth in range(6000)) == 600 / PING_EVERY_S


states = st.sampled_from(list(RunState))
troubles = st.builds(Trouble, st.sampled_from(TroubleKind), st.text(max_size=20), st.text(max_size=3))
looks = st.lists(st.tuples(states, st.lists(troubles, max_size=3), st.integers(1, 120), st.floats(-1e6, 1e6)), max_size=40)


@settings(max_examples=60)
@given(looks)
def test_never_too_many_messages_whatever_happens(sequence: list[tuple[RunState, list[Trouble], int, float]]) -> None:
    """Any history, clocks that jump included: each end once, at most so many others a day, and no exception."""
    person = Person()
    for state, seen, minutes, jump_s in sequence:
        person.now_s = max(0.0, person.now_s + (jump_s if abs(jump_s) > 5e5 else 0))
        person.sees(status_of(state, *seen, since=person.now_s, failure="x"), minutes=minutes)
    assert person.kinds.count(Kind.FINISHED) + person.kinds.count(Kind.FAILED) <= max(1, len(sequence))
    for at in range(len(person.policy.told.sent)):
        window = [t for t in person.policy.told.sent if 0 <= person.policy.told.sent[at] - t < 86_400]
        assert len(window) <= MOST_A_DAY
    msgspec.json.decode(msgspec.json.encode(person.policy.told), type=Told)


def test_a_queued_run_says_once_that_it_begins_also_after_a_restart() -> None:
    waiting = WaitingStatus(runs=["a"], what_for="for run 'a'")
    person = Person()
    assert person.sees(status_of(RunState.WAITING, waiting=waiting), minutes=60) == []
    again = Person(person.policy.told)
    assert [notice.kind for notice in again.sees(status_of(RunState.STARTING), minutes=5)] == [Kind.BEGUN]
    stopped = Person()
    stopped.sees(status_of(RunState.WAITING, waiting=waiting))
    assert stopped.sees(status_of(RunState.STOPPED, wanted=Wanted.STOPPED), minutes=5) == []
