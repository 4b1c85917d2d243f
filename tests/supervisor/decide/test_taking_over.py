"""What a run that is up takes over: what may change, as far as the worker's present use allows, and with the words for it."""

from __future__ import annotations

from copy import deepcopy

import pytest

from memsup.shared.settings import Settings, SettingsError, keys
from memsup.supervisor.decide.claims import ALONE
from memsup.supervisor.decide.taking_over import changed, check_room, concerns_limits, told
from memsup.supervisor.decide.tiers import Limits

GIB = 2**30


def limits(worker_bytes: int) -> Limits:
    return Limits(
        worker_limit_bytes=worker_bytes,
        worker_limit_origin="limits.ram = 1 GiB (given now)",
        reserve_bytes=GIB,
        reserve_origin="default",
        reserve_free_bytes=GIB,
        fence_bytes=worker_bytes,
        vram_bytes=None,
        beside=ALONE,
    )


def test_only_what_may_change_changes() -> None:
    has, asked = Settings(), deepcopy(Settings())
    asked.limits.ram, asked.checkpoint.every_s = GIB, 60.0
    assert changed(has, asked) == {"limits.ram", "checkpoint.every"}
    asked.training.epochs = 9.0
    with pytest.raises(SettingsError, match=r"training\.epochs"):
        changed(has, asked)
    assert concerns_limits({"limits.power_w"})
    assert not concerns_limits(name for name, key in keys().items() if key.section != "limits")


def test_a_limit_below_what_the_worker_holds_is_refused_with_the_way_to_have_it() -> None:
    """The fence would kill it, and what it has learnt since its checkpoint would be lost."""
    check_room("night", limits(GIB), None)
    check_room("night", limits(GIB), GIB // 2)
    with pytest.raises(SettingsError, match="The worker holds 973 MiB") as refused:
        check_room("night", limits(GIB), int(0.95 * GIB))
    assert [line.split("   ")[0].strip() for line in refused.value.more] == [
        "memsup pause --run night --release",
        "memsup start --run night …",
        "memsup resume --run night",
    ]


def test_what_counts_later_is_said_so() -> None:
    """A worker reads some things once; where there is none, the next one reads them anyway."""
    assert told("default", {"limits.ram"}, limits(GIB), 2 * GIB, has_worker=True) == (
        "The worker may take 1 GiB now: limits.ram = 1 GiB (given now)."
    )
    more = told("default", {"limits.ram", "checkpoint.every", "checkpoint.keep"}, limits(2 * GIB), GIB, has_worker=True)
    assert more.startswith("The worker may take 2 GiB now")
    assert more.endswith(
        ". For the worker checkpoint.every and checkpoint.keep count when it begins again: "
        "memsup pause --release, then memsup resume."
    )
    assert "begins again" not in told("default", {"checkpoint.every"}, limits(GIB), GIB, has_worker=False)
    assert told("default", {"notify.urls"}, limits(GIB), GIB, has_worker=True) == ""
