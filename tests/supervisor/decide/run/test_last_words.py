"""A worker that has exited by itself is heard out, and nobody is waited for who has nothing to say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memsup.supervisor.decide.run.last_words import LAST_WORDS_WITHIN_S, LastWords


def test_its_last_words_have_half_a_second_to_come() -> None:
    words = LastWords()
    assert words.may_come(100.0, 1, owed=True)
    assert words.may_come(100.0 + LAST_WORDS_WITHIN_S / 2, 1, owed=True)
    assert not words.may_come(100.0 + LAST_WORDS_WITHIN_S, 1, owed=True)


def test_once_they_have_come_nothing_is_waited_for() -> None:
    words = LastWords()
    assert words.may_come(100.0, 0, owed=True)
    assert not words.may_come(100.1, 0, owed=False)


@given(st.none() | st.integers(-64, -1), st.booleans())
def test_who_was_killed_or_is_not_ours_says_no_more(exit_status: int | None, owed: bool) -> None:
    assert not LastWords().may_come(100.0, exit_status, owed=owed)
