"""When a program that takes no orders leaves its card to others, and comes back: looks at the device in, decisions out."""

from __future__ import annotations

from memsup.shared.settings import Share
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.decide.vram import BACK_AFTER_S, CardControl, CardDecision

GIB = 1 << 30
MOST = Share(0.95)


class Play:
    """A card of 10 GiB that is looked at twice a second."""

    def __init__(self, limit: Share | int = MOST) -> None:
        self.control, self.now_s, self.away, self.moves = CardControl(limit), 0.0, False, False

    def look(self, others: float | None, own: float = 6.0, *, times: int = 4, after_s: float = 0.5) -> CardDecision:
        for _ in range(times):
            self.now_s += after_s
            here = 0.0 if self.away else own
            used = None if others is None else int((others + here) * GIB)
            gpu = GpuReading(
                at_s=self.now_s, index=0, total_bytes=10 * GIB, used_bytes=used, worker_bytes=int(here * GIB) or None
            )
            decision = self.control.step(self.now_s, [gpu], on_card=not self.away, moves=self.moves)
        return decision


def test_it_leaves_for_a_newcomer_on_a_full_card_only() -> None:
    play = Play()
    assert not play.look(1).leave
    assert not play.look(2.9).leave, "both fit"
    assert not play.look(2.9, own=7).leave, "the program fills the card itself, and nobody wants more than before"
    assert not play.look(3.9, times=1).leave, "one look is none"
    decision = play.look(3.9, times=1)
    assert decision.leave
    assert "other programs hold 3.9 GiB of GPU 0" in decision.reason


def test_it_fills_the_card_itself_and_stays() -> None:
    play = Play()
    play.look(1)
    assert not play.look(1, own=8.9).leave


def test_it_comes_back_when_there_has_been_room_for_a_while_for_all_that_it_had() -> None:
    play = Play()
    play.look(1)
    assert play.look(3.9).leave
    play.moves = True
    assert play.look(None).leave, "nobody can tell whose the memory is meanwhile"
    play.moves, play.away = False, True
    full = play.look(9)
    assert full.leave
    assert "it needs 6 GiB of GPU 0, and other programs leave 512 MiB" in full.reason
    assert play.look(3.6, times=100).leave, "below 95 % of the device it is 5.9 GiB"
    assert play.look(3, times=2).leave
    assert play.look(9, times=2).leave, "they have taken it again"
    assert play.look(3, times=int(BACK_AFTER_S * 2)).leave
    assert not play.look(3, times=2).leave
    play.away = False
    assert not play.look(3).leave, "what they hold now is what it fits beside"
    assert play.look(3.9).leave


def test_one_that_a_person_has_sent_away_comes_back_at_once_where_there_is_room() -> None:
    play = Play()
    play.look(1)
    play.away = True
    assert not play.look(1, times=1).leave
    assert play.look(9, times=1).leave
    assert not play.look(1, times=1).leave
    assert not play.look(None, times=1).leave, "what is unknown keeps nobody away who was asked for"


def test_what_is_unknown_keeps_it_away_that_has_made_way() -> None:
    play = Play()
    play.look(1)
    play.look(3.9)
    play.away = True
    assert "not known" in play.look(None, times=100).reason


def test_one_that_may_have_all_of_the_card_makes_way_for_nobody() -> None:
    play = Play(Share(1.0))
    play.look(1)
    assert not play.look(3.9).leave
    bytes_only = Play(6 * GIB)
    bytes_only.look(1)
    assert bytes_only.look(3.9).leave
