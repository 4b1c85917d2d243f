"""Tiers: every machine gets limits that leave the rest its share, and every value says where it came from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsup.shared.loading import load
from memsup.shared.record import RunRecord
from memsup.shared.settings import Settings, SettingsError, Share
from memsup.shared.status import Wanted
from memsup.supervisor.decide.claims import Beside, Claim
from memsup.supervisor.decide.ladder import Ladder, MemoryLimits, Rung, WorkerView
from memsup.supervisor.decide.readings import GpuReading, Machine, MemoryReading
from memsup.supervisor.decide.tier_lines import lines, notes
from memsup.supervisor.decide.tiers import LEAST_RESERVE_BYTES, TIERS, WORKER_NEEDS_BYTES, Resolution, claim_of, resolve

MIB, GIB = 2**20, 2**30
RANK = list(TIERS)


def machine(ram: float, *vram: float | None, bf16: bool | None = None, **more: Any) -> Machine:
    """A machine with `ram` and one GPU for each of `vram`, all in GiB. None stands for a GPU that does not tell its size;
    `bf16` is what all tell of bfloat16.
    """
    gpus = tuple(
        GpuReading(at_s=0, index=i, name=f"GPU {i}", total_bytes=None if g is None else int(g * GIB), bf16=bf16)
        for i, g in enumerate(vram)
    )
    fields: dict[str, Any] = {"ram_available_bytes": None, "cpus": 4, "gpus": gpus} | more
    return Machine(ram_total_bytes=int(ram * GIB), **fields)


def mixed() -> Machine:
    """Two GPUs, of which one computes bfloat16; which of them trains is not known."""
    old, new = machine(24, 12, bf16=False), machine(24, 12, bf16=True)
    return replace(old, gpus=old.gpus + new.gpus)


def a_record(run: str, settings: Settings) -> RunRecord:
    return RunRecord(
        run=run,
        run_id="0123456789ab",
        created_unix_s=0,
        wanted=Wanted.RUNNING,
        tier="full",
        tier_reason="a test",
        settings=settings,
    )


def resolved(where: Machine, *flags: str) -> Resolution:
    loaded = load(job_file=None, flags=flags, environment={})
    return resolve(loaded.settings, loaded.origins, where)


@pytest.mark.parametrize(
    ("where", "tier"),
    [
        (machine(3.8), "low"),
        (machine(7.0), "low"),
        (machine(7.6), "safe"),  # sold with 8 GB
        (machine(15.5), "safe"),  # sold with 16 GB
        (machine(16.0), "safe"),  # a container of 16 GiB
        (machine(23.5), "full"),
        (machine(31.2), "full"),
        (machine(31.2, 2.0), "low"),
        (machine(31.2, 4.0), "safe"),
        (machine(31.2, 6.0), "safe"),
        (machine(31.2, 8.0), "safe"),  # "8 GB" cards have 8 GiB
        (machine(31.2, 11.0), "full"),
        (machine(31.2, 24.0), "full"),
        (machine(15.5, 24.0), "safe"),
        (machine(7.0, 24.0), "low"),
        (machine(31.2, None), "full"),  # unknown is neither fine nor nought
        (machine(31.2, 24.0, 2.0), "low"),
    ],
)
def test_auto_follows_the_table(where: Machine, tier: str) -> None:
    """As machines are sold: firmware keeps a part of the RAM, and a card's gigabytes are binary."""
    found = resolved(where)
    assert found.tier == tier
    assert found.reason


def test_a_gpu_that_is_not_used_does_not_count() -> None:
    """`training.device = cpu` on a machine with a small GPU earns what its RAM earns."""
    assert resolved(machine(31.2, 2.0), "training.device=cpu").tier == "full"


def test_each_tier_gives_the_guides_values() -> None:
    """Micro-batch, length, effective batch and activation checkpointing as in the table."""
    for name, tokens, length, checkpointing in (
        ("low", 128, 128, True),
        ("safe", 1024, 256, False),
        ("full", 4096, 512, False),
    ):
        training = resolved(machine(64), f"tier={name}").settings.training
        assert (training.micro_tokens, training.max_length, training.effective_batch) == (tokens, length, 16)
        assert training.gradient_checkpointing is checkpointing
        assert (training.amp, training.threads) == ("off", None)


@given(
    st.fixed_dictionaries(
        {
            "tier": st.sampled_from(RANK),
            "training.effective_batch": st.integers(1, 4096),
            "training.max_length": st.integers(4, 8192),
            "training.micro_tokens": st.integers(1, 10**6),
            "training.gradient_checkpointing": st.sampled_from(["true", "false"]),
            "training.threads": st.integers(1, 64),
            "training.lanes": st.integers(1, 2),
            "training.amp": st.sampled_from(["off", "bf16", "fp16"]),
            "training.tune": st.sampled_from(["true", "false"]),
        }
    )
)
def test_what_is_set_is_kept(asked: dict[str, object]) -> None:
    """A tier fills in what was left open and changes nothing else; what was asked for keeps its name in `settings.tier`."""
    loaded = load(job_file=None, flags=[f"{key}={value}" for key, value in asked.items()], environment={})
    found = resolve(loaded.settings, loaded.origins, machine(64))
    assert found.settings == loaded.settings
    origins = {line.origin for line in lines(found) if line.name not in {"worker memory", "reserve"}}
    assert all("(flag)" in origin for origin in origins)


def test_nothing_is_left_open_for_the_run_record() -> None:
    """Every value that the tier decides is filled in, and the settings passed in stay as they were.

    How many threads are the fastest is found out by the worker, unless the run is to be the same bit for bit.
    """
    asked = Settings()
    asked.training.tune = False
    training = resolve(asked, {}, machine(23.5)).settings.training
    assert (asked.training.micro_tokens, asked.training.threads) == (None, None)
    for name in (
        "effective_batch",
        "max_length",
        "micro_tokens",
        "gradient_checkpointing",
        "amp",
        "threads",
    ):
        assert getattr(training, name) is not None, name


sizes = st.integers(GIB, 4096 * GIB)


@given(sizes)
def test_by_default_the_rest_keeps_a_tenth_and_half_a_gib_but_never_more_than_half(total: int) -> None:
    """Promise 1: whatever the machine, the reserve and the worker's limit never overlap."""
    limits = resolve(Settings(), {}, Machine(ram_total_bytes=total, ram_available_bytes=None)).limits
    assert limits.reserve_bytes == min(total // 2, max(total // 10, 512 * MIB))
    assert WORKER_NEEDS_BYTES <= limits.worker_limit_bytes <= min(total - limits.reserve_bytes, int(total * 0.9) + 1)
    assert limits.fence_bytes <= total - limits.reserve_bytes


def contained(limit: float, within: float = 24, **more: Any) -> Machine:
    """A cgroup of `limit` GiB on a machine of `within` GiB."""
    return machine(limit, machine_ram_bytes=int(within * GIB), ram_source="cgroup /box", **more)


@pytest.mark.parametrize(
    ("where", "reserve_mib", "limit_mib"),
    [
        (contained(1.0), 102, 921),
        (contained(0.9), 96, 825),
        (contained(1.5), 153, 1382),
        (contained(4.0), 409, 3686),
        (contained(5.0, within=5.5), 512, 4608),  # half a GiB outside is not what a machine of 5.5 GiB usually keeps
        (contained(1.0, within=1.0), 512, 512),  # no cgroup bounds anything
    ],
)
def test_inside_a_cgroup_the_reserve_is_for_ourselves(where: Machine, reserve_mib: int, limit_mib: int) -> None:
    """The rest of the machine lies outside, as long as it keeps its usual reserve even beside a full cgroup."""
    limits = resolved(where).limits
    assert (limits.reserve_bytes // MIB, limits.worker_limit_bytes // MIB) == (reserve_mib, limit_mib)
    assert limits.worker_limit_bytes + limits.reserve_bytes <= where.ram_total_bytes
    assert ("cgroup /box" in limits.reserve_origin) == (reserve_mib < 512)


def test_what_we_use_ourselves_inside_a_cgroup_is_not_asked_to_be_free_as_well() -> None:
    """A worker well below its limit, the supervisor and a command fill a cgroup of 1 GiB to 94 %: no reason to hold."""
    limits = resolved(contained(1.0)).limits
    worker_bytes, ours_bytes = int(0.89 * limits.worker_limit_bytes), 60 * MIB
    reading = MemoryReading(
        at_s=0,
        ram_total_bytes=GIB,
        ram_available_bytes=GIB - worker_bytes - ours_bytes,
        worker_bytes=worker_bytes,
    )
    ladder = Ladder(MemoryLimits(worker_bytes=limits.worker_limit_bytes, reserve_bytes=limits.reserve_free_bytes))
    stance = ladder.step(0, reading, None, WorkerView(alive=True, takes_orders=True))
    assert stance.rung is Rung.STOP_GROWING
    assert resolved(machine(24)).limits.reserve_free_bytes == resolved(machine(24)).limits.reserve_bytes


@pytest.mark.parametrize(
    ("where", "flags", "amp"),
    [
        (machine(24, cpu_bf16=True), [], "bf16"),
        (machine(24, cpu_bf16=True), ["training.amp=auto", "tier=low"], "bf16"),
        (machine(24, cpu_bf16=True), ["training.amp=off"], "off"),
        (machine(24, cpu_bf16=True), ["training.amp=fp16"], "fp16"),
        (machine(24, cpu_bf16=False), [], "off"),
        (machine(24, cpu_bf16=False), ["training.amp=bf16"], "bf16"),
        (machine(24), [], "off"),
        (machine(24, 12, cpu_bf16=True), [], "off"),
        (machine(24, 12, cpu_bf16=True), ["training.device=cpu"], "bf16"),
        (machine(24, cpu_bf16=True), ["training.device=cuda"], "off"),
        (machine(24, 12, bf16=True), [], "bf16"),
        (machine(24, 6, bf16=True), ["training.device=cuda:0"], "bf16"),
        (machine(24, 12, bf16=True), ["training.amp=off"], "off"),
        (machine(24, 12, bf16=True), ["training.device=cpu"], "off"),
        (machine(24, 12, bf16=False, cpu_bf16=True), [], "off"),
        (mixed(), [], "off"),
    ],
)
def test_bfloat16_is_chosen_where_what_trains_computes_it(where: Machine, flags: list[str], amp: str) -> None:
    """By every tier alike, said with its reason; what was asked for wins."""
    found = resolved(where, *flags)
    assert found.settings.training.amp == amp
    (line,) = (line for line in lines(found) if line.name == "mixed precision")
    assert line.value == amp
    assert ("(flag)" in line.origin) == (any("amp" in flag for flag in flags) and "auto" not in flags[0])


def test_a_run_keeps_the_precision_that_it_began_with() -> None:
    """Its record has it filled in, so a CPU that can do more (or less) changes nothing."""
    began = resolved(machine(24, cpu_bf16=True)).settings
    assert resolve(began, {}, machine(24, cpu_bf16=False)).settings.training.amp == "bf16"
    began = resolved(machine(24, cpu_bf16=False)).settings
    assert resolve(began, {}, machine(24, cpu_bf16=True)).settings.training.amp == "off"


@given(sizes, st.floats(0.001, 1), st.none() | st.floats(0.001, 1) | st.integers(1, 8192 * GIB))
def test_any_limit_is_either_refused_or_leaves_the_reserve_alone(total: int, ram: float, reserve: float | int | None) -> None:
    """No combination of limits reaches into what belongs to the rest of the machine."""
    settings = Settings()
    settings.limits.ram = Share(ram)
    settings.limits.ram_reserve = Share(reserve) if isinstance(reserve, float) else reserve
    try:
        limits = resolve(settings, {}, Machine(ram_total_bytes=total, ram_available_bytes=None)).limits
    except SettingsError:
        return
    assert limits.worker_limit_bytes + limits.reserve_bytes <= total
    assert limits.fence_bytes + limits.reserve_bytes <= total
    assert limits.worker_limit_bytes <= max(total * ram, 1)
    assert limits.worker_limit_bytes >= WORKER_NEEDS_BYTES
    assert limits.reserve_bytes >= LEAST_RESERVE_BYTES


@given(sizes, st.lists(st.tuples(st.none() | st.floats(0.001, 1), st.none() | st.floats(0.001, 0.5)), min_size=2, max_size=5))
def test_runs_that_live_at_the_same_time_share_the_machine(total: int, asked: list[tuple[float | None, float | None]]) -> None:
    """In whatever order they start and whatever they ask for: together they leave the largest reserve alone, and what somebody
    asked for is kept in full or refused.
    """
    where = Machine(ram_total_bytes=total, ram_available_bytes=None)
    claims: list[Claim] = []
    for number, (ram, reserve) in enumerate(asked):
        settings = Settings()
        settings.limits.ram = settings.limits.ram if ram is None else Share(ram)
        settings.limits.ram_reserve = None if reserve is None else Share(reserve)
        try:
            alone = resolve(settings, {}, where).limits
            limits = resolve(settings, {}, where, beside=Beside(others=tuple(claims))).limits
        except SettingsError:
            continue
        assert limits.worker_limit_bytes >= WORKER_NEEDS_BYTES
        assert limits.fence_bytes == limits.worker_limit_bytes <= alone.worker_limit_bytes
        if ram is not None and settings.limits.ram != Settings().limits.ram:
            assert limits.worker_limit_bytes == alone.worker_limit_bytes
        claims.append(claim_of(a_record(f"run {number}", settings), limits, on_gpu=False))
        others = sum(claim.ram_bytes or 0 for claim in claims)
        assert others + max(claim.reserve_bytes for claim in claims) <= total or len(claims) == 1


def test_what_other_runs_may_take_is_said_with_numbers_and_the_next_step() -> None:
    """A default is lowered, what was asked for is refused, and so is a share that nothing can start in."""
    other = Claim(run="night", ram_bytes=12 * GIB, reserve_bytes=GIB)

    def beside(*flags: str, **kept: Any) -> Resolution:
        loaded = load(job_file=None, flags=flags, environment={})
        return resolve(loaded.settings, loaded.origins, machine(20), beside=Beside(others=(other,), **kept))

    lowered = beside()
    assert lowered.limits.worker_limit_bytes == 6 * GIB
    assert "run 'night' may take 12 GiB of the 18 GiB" in lowered.limits.worker_limit_origin
    assert [line.value for line in lines(lowered) if line.name == "other runs"] == ["run 'night' may take 12 GiB"]
    assert beside("limits.ram=5GiB").limits.worker_limit_bytes == 5 * GIB
    for flags, words in (
        (["limits.ram=7GiB"], ["limits.ram = 7 GiB (flag)", "leaves 6 GiB", "limits.ram=6GiB", "stop --run night"]),
        (["limits.ram=90%"], ["limits.ram = 90 % of 20 GiB (flag)", "leaves 6 GiB"]),
        (["limits.ram_reserve=7.6GiB"], ["no room", "12.4 GiB", "--after night", "start --run night --set limits.ram=6GiB"]),
    ):
        with pytest.raises(SettingsError) as refused:
            beside(*flags)
        said = " ".join([str(refused.value), *refused.value.more])
        assert all(word in said for word in words), said
    assert beside(own_bytes=3 * GIB).limits.worker_limit_bytes == 3 * GIB  # begun at a boot, before the others
    assert beside(own_bytes=9 * GIB).limits.worker_limit_bytes == 6 * GIB


def test_a_run_whose_limit_is_not_known_is_named() -> None:
    """Unknown is neither nought nor everything."""
    others = (Claim(run="new"), Claim(run="cards", ram_bytes=GIB, on_gpu=True))
    found = resolve(Settings(), {}, machine(20, 24), beside=Beside(others=others))
    assert found.limits.worker_limit_bytes == 17 * GIB
    assert any("'new'" in note and "not known" in note for note in notes(found))
    assert any("cards" in note and "limits.vram" in note for note in notes(found))


def refusal(other: Claim, *flags: str) -> list[str]:
    """What a start beside `other` is told on a machine with 20 GiB, of which 18 are there for training."""
    loaded = load(job_file=None, flags=flags, environment={})
    with pytest.raises(SettingsError) as refused:
        resolve(loaded.settings, loaded.origins, machine(20), beside=Beside(others=(other,)))
    return [str(refused.value), *refused.value.more]


def test_who_finds_no_room_is_told_why_and_what_to_type() -> None:
    """The other run took all there is by default and needs little of it: two small programs have room beside each other."""
    everything = Claim(run="night", ram_bytes=18 * GIB, is_given=False, needs_bytes=400 * MIB)
    first, *rest = refusal(everything)
    assert "run 'night' may take 18 GiB of the 18 GiB that are there for training, which leaves nothing" in first
    assert "estimated to need 400 MiB at most and may take that much only because its limits.ram was left at the" in first
    assert [line.split("  ")[1] for line in rest[1:]] == [
        "memsup stop --run night",
        "memsup start --run night --set limits.ram=9GiB",
        "this start once more",
    ]
    assert "checkpoints and stops it" in rest[1]
    # What is asked for finds room, where the other one can do with the rest.
    assert any("--set limits.ram=16GiB" in line for line in refusal(everything, "limits.ram=2GiB"))
    assert any("this start once more, with --set limits.ram=9GiB" in line for line in refusal(everything, "limits.ram=18GiB"))
    # No advice that would kill what runs: it holds 12 GiB, or all there is.
    holds = msgspec.structs.replace(everything, needs_bytes=None, is_command=True, holds_bytes=12 * GIB)
    first, *rest = refusal(holds)
    assert "takes 12 GiB now" in first
    assert "ends its command" in rest[1]
    assert "--set limits.ram=15GiB" in rest[2]
    (only,) = refusal(msgspec.structs.replace(holds, holds_bytes=17 * GIB))[1:]
    assert only == "To make room, queue this run behind it (this start once more, with --after night)."


def test_advice_to_share_leaves_room_beside_many() -> None:
    """Halving one of ten would not, where each has a tenth."""
    others = tuple(Claim(run=f"r{n}", ram_bytes=1800 * MIB) for n in range(10))
    with pytest.raises(SettingsError) as refused:
        resolve(Settings(), {}, machine(20), beside=Beside(others=others))
    assert any("--set limits.ram=1116MiB" in line for line in refused.value.more), refused.value.more


@pytest.mark.parametrize("absurd", [{"ram_bytes": 0}, {"ram_bytes": 2**60}, {"ram_bytes": GIB, "reserve_bytes": 2**60}])
def test_a_claim_that_no_run_here_can_have_is_not_known(absurd: dict[str, int]) -> None:
    """It is neither believed nor made part of a sum."""
    found = resolve(Settings(), {}, machine(20), beside=Beside(others=(Claim(run="odd", **absurd),)))  # type: ignore[arg-type]
    assert found.limits.worker_limit_bytes == 18 * GIB
    assert any("'odd'" in note and "not known" in note for note in notes(found))


@given(sizes, sizes)
def test_more_memory_never_earns_less(one: int, other: int) -> None:
    """Neither a lower tier nor a smaller limit."""
    less, more = (resolve(Settings(), {}, Machine(ram_total_bytes=t, ram_available_bytes=None)) for t in sorted((one, other)))
    assert less.limits.worker_limit_bytes <= more.limits.worker_limit_bytes
    assert RANK.index(less.tier) <= RANK.index(more.tier)


@given(st.floats(1, 100), st.lists(st.floats(0.5, 100), min_size=1, max_size=3))
def test_a_gpu_never_earns_more_than_the_ram_alone(ram: float, vram: list[float]) -> None:
    """The weaker memory decides, and of several GPUs the smallest."""
    alone, beside = resolved(machine(ram)), resolved(machine(ram, *vram))
    assert RANK.index(beside.tier) <= RANK.index(alone.tier)
    assert resolved(machine(ram, min(vram))).tier == beside.tier


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("limits.ram=300MiB", ["limits.ram", "300 MiB", "(flag)", "512 MiB", "--set limits.ram=21GiB"]),
        ("limits.ram=1%", ["limits.ram", "1 %", "512 MiB"]),
        ("limits.ram_reserve=100%", ["limits.ram_reserve", "nothing is left"]),
        ("limits.ram_reserve=64GiB", ["limits.ram_reserve", "64 GiB", "23.5 GiB"]),
        ("limits.ram_reserve=23.3GiB", ["reserve", "23.3 GiB", "512 MiB", "lower limits.ram_reserve"]),
        ("limits.ram_reserve=1MiB", ["limits.ram_reserve", "1 MiB", "64 MiB"]),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_in_one_sentence(flag: str, words: list[str]) -> None:
    """It names the setting, its origin, both numbers, and what to do."""
    with pytest.raises(SettingsError) as refused:
        resolved(machine(23.5), flag)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("where", "flags", "word"),
    [
        (machine(16.0, 24.0), ["training.ranks=2"], "there is 1 GPU that it may compute on"),
        (machine(16.0, 24.0, 24.0), ["training.ranks=3"], "there are 2 GPUs that it may compute on"),
        (machine(16.0, 24.0, 24.0, visible_gpus="1"), ["training.ranks=2"], "there is 1 GPU that it may compute on"),
        (machine(16.0, 24.0, 24.0), ["training.ranks=2", "training.device=cuda:1"], "cuda:1, which is one GPU"),
        (machine(16.0), ["training.ranks=9", "training.effective_batch=8"], "8 samples"),
        (machine(16.0), ["training.ranks=2", "task.stream=true"], "task.stream to false"),
        (machine(16.0), ["training.shard=true"], "there is one rank: add --ranks 2"),
        (machine(16.0), ["training.shard=true", "nodes.count=2"], "the ranks of one machine"),
        (machine(16.0), ["training.shard=true", "training.ranks=2", "task.kind=causal-lm"], "not for causal-lm"),
        (machine(16.0, 24.0), ["training.shard=true", "training.ranks=2"], "training.device to cpu"),
        (machine(16.0, 24.0), ["nodes.count=2"], "training.device to cpu"),
        (machine(16.0, 24.0), ["nodes.join=10.0.0.1"], "training.device to cpu"),
        (machine(16.0), ["nodes.count=2", "training.ranks=2"], "training.ranks to 1"),
        (machine(16.0), ["nodes.count=9", "training.effective_batch=8"], "8 samples"),
        (machine(16.0), ["nodes.count=2", "task.stream=true"], "task.stream to false"),
    ],
)
def test_more_ranks_than_can_compute_are_refused(where: Machine, flags: list[str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        resolved(where, *flags)
    assert resolved(machine(16.0, 24.0), "training.ranks=2", "training.device=cpu").settings.training.ranks == 2


@pytest.mark.parametrize(
    ("where", "flags", "ranks"),
    [
        (machine(16.0), [], 1),
        (machine(16.0), ["training.ranks=2"], 2),
        (machine(16.0, 24.0), [], 1),
        (machine(16.0, 24.0, 12.0), [], 2),
        (machine(16.0, 24.0, 12.0), ["training.ranks=1"], 1),
        (machine(16.0, 24.0, 12.0), ["training.device=cpu"], 1),
        (machine(16.0, 24.0, 12.0), ["training.device=cuda:1"], 1),
        (machine(16.0, 24.0, 12.0), ["task.stream=true"], 1),
        (machine(16.0, 24.0, 12.0, 12.0), ["training.effective_batch=2"], 2),
        (machine(16.0, 24.0, 12.0, visible_gpus="1"), [], 1),
        (machine(16.0, 24.0, 12.0, visible_gpus="GPU-1,GPU-0"), [], 2),
        (machine(16.0), ["training.device=cuda", "training.ranks=2"], 2),
        (machine(16.0), ["training.device=cuda"], 1),
    ],
)
def test_without_being_asked_there_is_a_rank_for_each_gpu_that_may_be_used(
    where: Machine, flags: list[str], ranks: int
) -> None:
    """One that is lost counts for none, and where the driver does not tell how many there are, one is used."""
    assert resolved(where, *flags).ranks == ranks
    lost = replace(where, gpus=tuple(msgspec.structs.replace(gpu, lost=True) for gpu in where.gpus[:1]) + where.gpus[1:])
    if not flags and len(where.gpus) > 1 and where.visible_gpus is None:
        assert resolved(lost).ranks == ranks - 1


def test_a_command_may_be_given_what_no_worker_could_start_with() -> None:
    loaded = load(job_file=None, flags=["limits.ram=40MiB"], environment={})
    found = resolve(loaded.settings, loaded.origins, machine(23.5), is_command=True)
    assert found.limits.worker_limit_bytes == 40 * MIB
    loaded = load(job_file=None, flags=["limits.ram=8MiB"], environment={})
    with pytest.raises(SettingsError, match="16 MiB that a command needs"):
        resolve(loaded.settings, loaded.origins, machine(23.5), is_command=True)


def test_a_machine_too_small_for_any_worker_is_told_so() -> None:
    """Half of 900 MiB does not hold a worker."""
    with pytest.raises(SettingsError, match="find more memory"):
        resolved(machine(0.9))


def test_a_gpu_limit_above_the_devices_own_is_refused() -> None:
    """It would never act: the device slows itself down before."""
    hot = machine(32, gpus=(GpuReading(at_s=0, index=0, name="GTX 1080", total_bytes=8 * GIB, slowdown_c=96.0),))
    with pytest.raises(SettingsError, match="slows itself down at 96"):
        resolved(hot, "limits.gpu_temperature_c=100")
    assert any("85 °C" in line.value for line in lines(resolved(hot, "limits.gpu_temperature_c=85")))
    assert any("96 °C" in line.value for line in lines(resolved(hot)))


def test_vram_in_bytes_is_so_many_bytes() -> None:
    """6 GB are 6 GB, and said so; more than there is counts as all; of an unknown size it is unknown, not nought."""
    six = resolved(machine(32, 8), "limits.vram=6000000001B")
    assert six.limits.vram_bytes == 6_000_000_001
    assert any(line.name == "worker VRAM" and line.value == "at most 5.59 GiB" for line in lines(six))
    more = resolved(machine(32, 8), "limits.vram=64GiB")
    assert more.limits.vram_bytes == 8 * GIB
    assert "limits.vram asks for 64 GiB, more than the 8 GiB there are." in notes(more)
    assert resolved(machine(32, 8)).limits.vram_bytes == int(0.95 * 8 * GIB)
    assert resolved(machine(32, None), "limits.vram=6GiB").limits.vram_bytes is None


def test_what_was_asked_for_and_does_nothing_here_is_said() -> None:
    """Nothing is silently clamped."""
    assert "earns low" in " ".join(notes(resolved(machine(4), "tier=full")))
    assert "more than there is" in " ".join(notes(resolved(machine(16), "limits.ram=64GiB")))
    assert "no GPU was seen" in " ".join(notes(resolved(machine(16), "training.device=cuda")))
    assert "only 4 CPUs" in " ".join(notes(resolved(machine(16), "training.threads=32")))
    assert "are free now" in " ".join(notes(resolved(machine(16, ram_available_bytes=GIB))))
    assert notes(resolved(machine(16, ram_available_bytes=8 * GIB))) == []


def test_a_cgroup_that_decides_is_named() -> None:
    """Who wonders why 64 GiB earn "low" is told which cgroup says so."""
    where = machine(4, ram_source="cgroup /docker/3f5a", cgroup_limits=(("/docker/3f5a", 4 * GIB),))
    assert "cgroup /docker/3f5a" in resolved(where).reason
