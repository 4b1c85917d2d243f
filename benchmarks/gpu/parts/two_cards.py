"""Part k: a rank on each of two cards: that both compute, hold their own memory, are faster than one, and outlive a kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import torch
from lines import Finding, Unproved, attempt
from stage import GIB, Run, Stage

from memsup.shared.readings import RankReading
from memsup.shared.status import Status

TITLE = "k. Two cards"
DEADLINE_S = 240.0
PROMISES = {
    "a_rank_a_card": "Without being asked there is a rank on each card, which holds its memory there, as the driver counts it.",
    "speed": "Two cards make at least 1.6 times the samples/s of one.",
    "killed": "A rank that is killed is named within 60 s, also in a collective, and costs the step in hand alone.",
    "same_samples": "Two ranks and one learn from the same samples.",
}
EFFECTIVE, STEPS = 64, 120


def prove(stage: Stage) -> Iterator[Finding]:
    has = torch.cuda.device_count()
    if has < 2:
        for key in PROMISES:
            there = "there is one card" if has else "there is no card"
            yield Finding(key=key, held=None, measured=f"{there}, and this takes two")
        return
    yield from attempt(PROMISES, lambda: _proved(stage))


def _proved(stage: Stage) -> Iterator[Finding]:
    job = stage.job("two_cards", rows=EFFECTIVE * STEPS)
    settings = (f"training.effective_batch={EFFECTIVE}", "training.max_length=128", "training.epochs=1")
    runs = [stage.run(f"{ranks}_cards", job, *settings, f"training.ranks={ranks}") for ranks in ("auto", 1)]
    ends = []
    for run in runs:
        try:
            run.start()
            if run is runs[0]:
                yield _holds(
                    run.until("on two cards", lambda seen: (seen.progress.step or 0) > 20 and len(_ranks(seen)) == 2, 90)
                )
            seen = run.until_over(150)
            ends.append((run.samples_per_s(EFFECTIVE, skipped=0.4), str(seen.progress.digest).partition(".")[0]))
        finally:
            run.end()
    (two, digest_of_two), (one, digest_of_one) = ends
    yield Finding(
        key="speed",
        held=stage.judged(two >= 1.6 * one),
        measured=f"{two:.0f} samples/s on two cards, {one:.0f} on one",
        figures={"two": two, "one": one},
    )
    yield _killed(stage.run("killed", job, *settings))
    yield Finding(
        key="same_samples", held=digest_of_two == digest_of_one, measured=f"digests {digest_of_two} and {digest_of_one}"
    )


def _ranks(seen: Status) -> tuple[RankReading, ...]:
    return seen.batch.ranks or ()


def _holds(seen: Status) -> Finding:
    """The driver's numbers of cards are not CUDA's, so the least that is used is beside the least that is held."""
    ranks = _ranks(seen)
    held, used = sorted(rank.cuda_reserved_bytes or 0 for rank in ranks), sorted(gpu.used_bytes or 0 for gpu in seen.gpus)
    own = len({rank.gpu for rank in ranks} - {None}) == len(ranks)
    told = ", ".join(f"{size / GIB:.2f} of {of / GIB:.2f} GiB" for size, of in zip(held, used, strict=False))
    return Finding(
        key="a_rank_a_card",
        held=own and all(0 < size <= of for size, of in zip(held, used[-len(held) :], strict=True)),
        measured=f"{len(ranks)} ranks on {[rank.gpu for rank in ranks]} hold {told} that are used",
        figures={"reserved_bytes": held, "used_bytes": used},
    )


def _killed(run: Run) -> Finding:
    try:
        run.start()
        seen = run.until("past step 20", lambda seen: (seen.progress.step or 0) > 20 and len(_ranks(seen)) == 2, 90)
        began_s = time.monotonic()
        os.kill(_ranks(seen)[1].pid, signal.SIGKILL)
        run.until("begun again", lambda later: later.restarts > seen.restarts, 60)
        took_s = time.monotonic() - began_s
        deaths = run.events("death")
        if not deaths or deaths[-1].get("cause") != "killed":
            raise Unproved(f"the ledger says {deaths[-1:]}")
        run.until_over(150)
    finally:
        run.end()
    lost = deaths[-1].get("lost_steps")
    return Finding(
        key="killed", held=not lost, measured=f"named after {took_s:.1f} s, {lost or 0} steps lost", figures={"took_s": took_s}
    )
