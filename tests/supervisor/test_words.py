"""Figures and columns as people read them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.statuses import EVALUATION, a_status
from kit.terminal import obeyed

from memsup.shared.printable import printable, printable_json, printable_lines
from memsup.shared.readings import Computing, KnownBatch, KnownGpu
from memsup.shared.settings import parse_size
from memsup.shared.status import HoursStatus, RunState, Status, WaitingStatus, Wanted
from memsup.supervisor.cli.picture import one_line, picture
from memsup.supervisor.words import (
    columns,
    computing_text,
    cut,
    duration,
    ending_line,
    evaluation_text,
    finished_lines,
    gpu_line,
    pad,
    percent,
    result_line,
    size,
    steps,
    width,
)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (512 * 2**20, "512 MiB"),
        (1000 * 2**20, "0.98 GiB"),
        (2527650201, "2.35 GiB"),
        (24684084 * 1024, "23.5 GiB"),
        (250 * 2**30, "250 GiB"),
        (None, "?"),
    ],
)
def test_sizes_have_three_digits(size_bytes: int | None, text: str) -> None:
    """And unknown is a question mark."""
    assert size(size_bytes) == text


@given(st.integers(1, 10**15))
def test_a_printed_size_can_be_typed_back(size_bytes: int) -> None:
    """What `start` prints is what `--set limits.ram=` takes, within the digits shown."""
    parsed = parse_size(size(size_bytes).replace(",", ""))
    assert isinstance(parsed, int)
    assert abs(parsed - size_bytes) <= max(1, size_bytes * 0.006)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h"), (None, "?")],
)
def test_durations_name_their_two_largest_units(seconds: float | None, text: str) -> None:
    """Nobody reads 7500 s."""
    assert duration(seconds) == text


def test_percent() -> None:
    """Unknown is not nought."""
    assert (percent(0.9), percent(None)) == ("90 %", "?")


def test_an_early_end_and_the_weights_of_the_model_are_said_from_the_fields() -> None:
    """Of accuracy as of loss, and of a model that has other weights than the best."""
    assert evaluation_text(EVALUATION) == (
        "accuracy 79.0 % at step 1,200; best 81.0 % at step 800, 2 of 3 evaluations without a better one"
    )
    over = msgspec.structs.replace(EVALUATION, without_rise=3, step=1600)
    status = a_status(RunState.FINISHED, evaluation=over, stopped_early=True, model_step=800, result={"accuracy": 0.81})
    assert finished_lines(status) == [
        "Finished: accuracy 81.0 %",
        "Stopped early: accuracy has not risen for 3 evaluations; best 81.0 % at step 800, whose weights the model has.",
    ]
    loss = msgspec.structs.replace(over, metric="loss", value=0.62, best=0.5432, keeps_best=False)
    status = a_status(RunState.FINISHED, evaluation=loss, stopped_early=True, model_step=1600)
    assert ending_line(status) == (
        "stopped early: loss has not fallen for 3 evaluations; best 0.5432 at step 800, while the model has the weights of "
        "step 1,600, the last one"
    )
    status = a_status(RunState.FINISHED, evaluation=over, model_step=800)
    assert ending_line(status) == "the model has the weights of step 800, with the best accuracy"
    status.model_step = over.step
    assert ending_line(status) is None


def test_a_run_that_rests_by_its_hours_says_until_when_in_one_line() -> None:
    """Not one that a person has paused as well."""
    hours = HoursStatus(rests=True, until=9.0, what="paused until Sun 23:00, by its hours (23:00 to 07:00)")
    status = a_status(RunState.PAUSED, hours=hours, waiting=WaitingStatus(what_for="until Sun 23:00, by its hours"))
    assert one_line(status).startswith(hours.what)
    status.wanted = Wanted.PAUSED
    assert one_line(status).startswith("paused,") or one_line(status) == "paused"


def test_what_a_trainer_says_of_its_computing_is_no_result_of_the_model() -> None:
    took = {"train_runtime": 13.17, "train_samples_per_second": 91.1, "train_steps_per_second": 22.8, "total_flos": 5e7}
    status = Status(run="x", state=RunState.FINISHED, wanted=Wanted.RUNNING, result={**took, "train_loss": 0.69, "epoch": 3.0})
    assert result_line(status) == "train loss 0.69"
    status.result = took
    assert str(result_line(status)).startswith("train runtime 13.17, "), "where there is nothing else"


def test_the_accuracy_has_beside_it_what_it_is_worth() -> None:
    """What guessing would reach, and how many of the texts were trained on."""
    result = {
        "accuracy": 0.931,
        "majority_accuracy": 0.55,
        "loss": 0.25,
        "rows": 81.0,
        "shared_rows": 12.0,
        "left_out_rows": 2.0,
    }
    told = result_line(Status(run="x", state=RunState.FINISHED, wanted=Wanted.RUNNING, result=result))
    assert told == (
        "accuracy 93.1 % (always the most frequent label: 55.0 %; 12 of 81 texts are trained on too), loss 0.25, rows 81, "
        "2 rows of the data left out"
    )


def test_a_line_is_cut_to_the_cells_there_are() -> None:
    assert cut("a\n b", 9) == "a b"
    assert cut("这个东西很好用", 9) == "这个东西…"
    assert cut("plain text", 6) == "plain…"


def test_chinese_names_keep_columns_straight() -> None:
    """A Chinese character is two cells wide, a combining accent none."""
    assert width("评论") == 4
    assert width("cafe\u0301") == 4
    lines = columns([("评论", "x"), ("default", "y")])
    assert [width(line) - 1 for line in lines] == [9, 9]


@given(st.text(max_size=20), st.integers(0, 40))
def test_padding_never_cuts(text: str, cells: int) -> None:
    """And reaches the width wherever the text is shorter."""
    assert pad(text, cells).startswith(text)
    assert width(pad(text, cells)) == max(cells, width(text))


@given(st.text())
def test_others_words_cannot_drive_the_terminal(text: str) -> None:
    """A worker's message or a file's name may hold escape sequences."""
    assert not obeyed(printable(text))
    assert "\n" not in printable(text)
    assert len(printable(text)) == len(text)
    assert not obeyed(printable_lines(text).replace("\t", ""))
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text
    assert not obeyed(printable_json(json.dumps(text, ensure_ascii=False)))


def test_every_character_is_judged_as_unicode_has_it() -> None:
    """What Unicode adds later as a control or a format character is found when Python learns of it."""
    everything = [chr(code) for code in range(0x110000)]
    assert {c for c in everything if printable(c) == c} & obeyed("".join(everything)) == set()
    for kept in ("评论", "é", "\u3000", "می\u200cخواهم", "👩\u200d💻", "葛\U000e0100", "→ °"):
        assert printable(kept) == printable_lines(kept) == kept


def test_steps_are_told_with_their_share_where_the_whole_is_known() -> None:
    """A command's steps, or those of a run without an end, are only counted."""
    assert steps(1240, 6585) == "step 1,240 of 6,585 (19 %)"
    assert steps(1240, None) == "step 1,240"
    assert steps(0, 0) == "step 0"


def test_a_gpu_is_told_as_far_as_it_is_known() -> None:
    """What is not known is a question mark or left out; what has a name by others cannot drive the terminal."""
    known = KnownGpu(
        index=0, name="A\x1bcard", used_bytes=2**30, total_bytes=2**31, temperature_c=71.5, slowdown_c=93.0, power_w=88.4
    )
    assert gpu_line(known) == "A\ufffdcard, 1 GiB of 2 GiB used, 71.5 °C (slows itself down at 93), 88 W"
    assert gpu_line(known, str.upper).count("71.5 °C") == 1
    assert gpu_line(KnownGpu(index=1)) == "a GPU, ? of ? used"


def test_what_training_makes_of_the_machine_is_said_with_what_takes_the_rest() -> None:
    known = Computing(
        step=1032,
        peak_per_s=414e9,
        useful=0.39,
        padding=0.07,
        attention=0.12,
        optimizer=0.08,
        loading=0.001,
        waiting=0.05,
        starting=None,
    )
    assert computing_text(known) == (
        "39 % of the peak, which is 414 billion operations a second; the rest is all other operations 29 %, attention 12 %, "
        "the optimizer 8 %, padding 7 %, waiting 5 % (step 1,032)"
    )
    status = a_status(batch=KnownBatch(computing=known))
    assert ("computes at", computing_text(known)) in picture(status, 0, verbose=True)
    assert ("computes at", computing_text(known)) not in picture(status, 0)
