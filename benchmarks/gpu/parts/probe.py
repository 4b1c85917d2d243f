"""Part a: what the probe reads, beside what nvidia-smi says in the same second; its latency; one killed and one that hangs."""

from __future__ import annotations

import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lines import Finding, Unproved, attempt
from stage import MIB, Stage

from memsup.supervisor.decide.thresholds import device_limits
from memsup.supervisor.sense.gpu.client import GpuClient
from memsup.supervisor.sense.gpu.frames import MAX_FRAME_BYTES, Device, Look, Seen, decode_answer, encode

TITLE = "a. What is read of the card"
DEADLINE_S = 70.0
PROMISES = {
    "opened": "The probe opens the driver and answers within 30 s.",
    "memory": "GPU memory is what nvidia-smi says in the same second, to 32 MiB.",
    "temperature": "The temperature is nvidia-smi's, to 2 °C, and where the card slows itself down is known.",
    "power": "Power is nvidia-smi's, to 10 W or 15 %, and its limits are, to 1 W.",
    "reasons": "Whether heat slows the card down is told as nvidia-smi tells it.",
    "own_share": "A program's own share is found by its process number, and is nvidia-smi's, to 32 MiB.",
    "latency": "99 of 100 answers about memory come within 50 ms, about everything within 250 ms.",
    "killed": "A probe that is killed costs readings for at most 10 s.",
    "hung": "A probe that hangs is given up after 2 s, and readings are back within 15 s.",
}
_HOLDS = (
    "import torch; held = torch.empty({bytes}, dtype=torch.uint8, device='cuda'); print('holds', flush=True); "
    "import sys; sys.stdin.read()"
)
_HELD_BYTES = 2 << 30


class Probe:
    """The probe's own process, asked directly: one question, one answer."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(30.0)
        command = [sys.executable, "-P", "-m", "memsup.supervisor.sense.gpu.probe"]
        self._child = subprocess.Popen(command, stdin=other.fileno())
        other.close()
        self._asked = 0

    def look(self, *, fully: bool = True) -> tuple[Device, Seen]:
        """The first GPU. Raises `Unproved` where there is none."""
        self._asked += 1
        self._link.send(encode(Look(self._asked, fully=fully)))
        answer = decode_answer(self._link.recv(MAX_FRAME_BYTES))
        if not isinstance(answer, Seen) or not answer.devices:
            raise Unproved(f"the probe answered {answer}")
        return answer.devices[0], answer

    def close(self) -> None:
        self._link.close()
        self._child.wait(10)


def smi(*fields: str, of: str = "gpu") -> list[str]:
    """One line of nvidia-smi about the first GPU, as the words that it says. Raises `RuntimeError` where it refuses."""
    first = ["-i", "0"] if of == "gpu" else []
    done = subprocess.run(
        ["nvidia-smi", *first, f"--query-{of}={','.join(fields)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"nvidia-smi says: {(done.stdout + done.stderr).strip()[:300]}")
    return [word.strip() for line in done.stdout.splitlines() for word in line.split(",")]


def number(word: str) -> float | None:
    """The number that nvidia-smi prints. Returns None where it has none, as for '[N/A]'."""
    try:
        return float(word)
    except ValueError:
        return None


def near(ours: float | None, theirs: float | None, within: float) -> bool:
    """Both unknown is alike as well."""
    if ours is None or theirs is None:
        return ours is theirs
    return abs(ours - theirs) <= within


def prove(stage: Stage) -> Iterator[Finding]:
    probe = Probe()
    yield from attempt(["opened"], lambda: [_opened(probe)])
    yield from attempt(["memory"], lambda: [_memory(probe)])
    yield from attempt(["temperature"], lambda: [_temperature(probe)])
    yield from attempt(["power"], lambda: [_power(probe)])
    yield from attempt(["reasons"], lambda: [_reasons(probe)])
    yield from attempt(["own_share"], lambda: [_own_share(probe, stage)])
    yield from attempt(["latency"], lambda: [_latency(probe, 60 if stage.quick else 300)])
    probe.close()
    yield from attempt(["killed"], lambda: [_disturbed("killed", signal.SIGKILL, 10.0)])
    yield from attempt(["hung"], lambda: [_disturbed("hung", signal.SIGSTOP, 15.0)])


def _opened(probe: Probe) -> Finding:
    device, _ = probe.look()
    took_s = time.monotonic() - probe.began_s
    figures = {"first_answer_s": took_s, "device": device.name}
    return Finding(key="opened", held=took_s <= 30.0, measured=f"{device.name}: {took_s:.2f} s", figures=figures)


def _memory(probe: Probe) -> Finding:
    """Our used memory is all that is not free, so the driver's own reserve belongs to it; nvidia-smi tells that apart."""
    device, _ = probe.look(fully=False)
    total, free, used, reserved = map(number, smi("memory.total", "memory.free", "memory.used", "memory.reserved"))
    ours = [None if value is None else value / MIB for value in (device.total_bytes, device.free_bytes)]
    told = [f"{'?' if value is None else format(value, ',.0f')} MiB" for value in (*ours, total, free, reserved)]
    return Finding(
        key="memory",
        held=ours[0] is not None and near(ours[0], total, 32) and near(ours[1], free, 32),
        measured=f"{told[0]} in all and {told[1]} free; nvidia-smi: {told[2]}, {told[3]} ({told[4]} kept by the driver)",
        figures={
            "total_mib": ours[0],
            "free_mib": ours[1],
            "smi_total_mib": total,
            "smi_free_mib": free,
            "smi_used_mib": used,
            "smi_reserved_mib": reserved,
        },
    )


def _temperature(probe: Probe) -> Finding:
    device, _ = probe.look()
    (theirs,) = map(number, smi("temperature.gpu"))
    text = subprocess.run(
        ["nvidia-smi", "-q", "-i", "0", "-d", "TEMPERATURE"], capture_output=True, text=True, timeout=20, check=False
    )
    said = dict(line.split(":", 1) for line in text.stdout.splitlines() if ":" in line and "Temp" in line)
    figures: dict[str, Any] = {name.strip(): value.strip() for name, value in said.items()}
    limits = device_limits(
        temperature_c=device.temperature_c,
        margin_c=device.margin_c,
        slowdown_margin_c=device.slowdown_margin_c,
        shutdown_margin_c=device.shutdown_margin_c,
        slowdown_threshold_c=device.slowdown_threshold_c,
        shutdown_threshold_c=device.shutdown_threshold_c,
    )
    ours = {
        "temperature_c": device.temperature_c,
        "margin_c": device.margin_c,
        "slowdown_margin_c": device.slowdown_margin_c,
        "shutdown_margin_c": device.shutdown_margin_c,
        "slowdown_threshold_c": device.slowdown_threshold_c,
        "shutdown_threshold_c": device.shutdown_threshold_c,
        "slowdown_c": limits.slowdown_c,
        "shutdown_c": limits.shutdown_c,
    }
    known = ", ".join(f"{name} {value:g}" for name, value in ours.items() if value is not None)
    return Finding(
        key="temperature",
        held=near(device.temperature_c, theirs, 2) and theirs is not None and limits.slowdown_c is not None,
        measured=f"{known}; nvidia-smi: {theirs} °C",
        figures=ours | {"smi_temperature_c": theirs, "smi_says": figures},
    )


def _power(probe: Probe) -> Finding:
    device, seen = probe.look()
    draw, limit, default, least = map(number, smi("power.draw", "power.limit", "power.default_limit", "power.min_limit"))
    held = (
        near(device.power_w, draw, max(10.0, 0.15 * (draw or 0.0)))
        and near(device.power_limit_w, limit, 1)
        and near(device.power_default_w, default, 1)
        and near(device.power_least_w, least, 1)
    )
    return Finding(
        key="power",
        held=held,
        measured=f"{device.power_w} W of {device.power_limit_w} ({device.power_default_w} by default, {device.power_least_w} "
        f"at least); nvidia-smi: {draw} of {limit} ({default}, {least})",
        figures={
            "power_w": device.power_w,
            "limit_w": device.power_limit_w,
            "default_w": device.power_default_w,
            "least_w": device.power_least_w,
            "smi_power_w": draw,
            "smi_limit_w": limit,
            "may_cap": seen.may_cap,
        },
    )


def _reasons(probe: Probe) -> Finding:
    device, _ = probe.look()
    try:
        (word,) = smi("clocks_event_reasons.hw_thermal_slowdown")
    except RuntimeError:  # its name before driver 535
        (word,) = smi("clocks_throttle_reasons.hw_thermal_slowdown")
    theirs = {"Active": True, "Not Active": False}.get(word)
    return Finding(
        key="reasons",
        held=device.slowed_by_heat == theirs,
        measured=f"slowed by heat: {device.slowed_by_heat}; nvidia-smi: {word}",
        figures={"slowed_by_heat": device.slowed_by_heat, "smi": word},
    )


@contextmanager
def _holder(stage: Stage) -> Iterator[int]:
    """A program that holds some GPU memory; its process number."""
    if stage.rehearses:
        device = stage.fake.device[0]
        device.worker_pid, device.worker_bytes, device.frees_of_dead = os.getpid(), _HELD_BYTES, 1
        yield os.getpid()
        device.worker_bytes = 0
        return
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDS.format(bytes=_HELD_BYTES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    if not child.stdout.readline():
        raise Unproved("a program that takes 2 GiB of the card did not start")
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def _own_share(probe: Probe, stage: Stage) -> Finding:
    with _holder(stage) as pid:
        device, _ = probe.look()
        words = smi("pid", "used_memory", of="compute-apps")
    ours = dict(device.processes or ())
    theirs = {int(pid): number(used) for pid, used in zip(words[::2], words[1::2], strict=False) if pid.isdecimal()}
    share = ours.get(pid)
    share_mib = None if share is None else share / MIB
    return Finding(
        key="own_share",
        held=share_mib is not None and near(share_mib, theirs.get(pid), 32) and share_mib >= _HELD_BYTES / MIB,
        measured=f"process {pid} holds {share_mib} MiB, nvidia-smi: {theirs.get(pid)} MiB; the driver names {sorted(ours)}",
        figures={"share_mib": share_mib, "smi_share_mib": theirs.get(pid), "named": len(ours)},
    )


def _latency(probe: Probe, count: int) -> Finding:
    took_ms: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(count):
        fully = turn % 2 == 0
        began_s = time.perf_counter()
        probe.look(fully=fully)
        took_ms[fully].append((time.perf_counter() - began_s) * 1000)
    median = {fully: statistics.median(values) for fully, values in took_ms.items()}
    late = {fully: statistics.quantiles(values, n=100)[98] for fully, values in took_ms.items()}
    return Finding(
        key="latency",
        held=late[False] <= 50 and late[True] <= 250,
        measured=f"memory {median[False]:.2f} ms in the middle and {late[False]:.2f} for 99 of 100; "
        f"everything {median[True]:.2f} and {late[True]:.2f}",
        figures={
            "memory_p50_ms": median[False],
            "memory_p99_ms": late[False],
            "all_p50_ms": median[True],
            "all_p99_ms": late[True],
        },
    )


def _disturbed(key: str, number_of_signal: signal.Signals, within_s: float) -> Finding:
    """What the supervisor's end of the probe sees when its child gets a signal."""
    client = GpuClient()
    try:
        client.wake()
        _drive(client, 30.0, "first readings", known=True)
        assert client.pid is not None
        os.kill(client.pid, number_of_signal)
        began_s = time.monotonic()
        _drive(client, within_s, "the loss to be seen", known=False)
        unknown_s = time.monotonic() - began_s
        _drive(client, within_s, "readings again", known=True)
        back_s = time.monotonic() - began_s
    finally:
        client.close()
    return Finding(
        key=key,
        held=back_s <= within_s,
        measured=f"unknown after {unknown_s:.2f} s, known again after {back_s:.2f} s: {client.why}",
        figures={"unknown_s": unknown_s, "back_s": back_s},
    )


def _drive(client: GpuClient, within_s: float, what: str, *, known: bool) -> None:
    """Its loop, until the memory of the first GPU is known, or not any more. Raises `Unproved`."""
    deadline_s = time.monotonic() + within_s
    while (now_s := time.monotonic()) < deadline_s:
        client.on_tick(now_s)
        readings = client.readings(now_s)
        if bool(readings and readings[0].used_bytes is not None) is known:
            return
        if select.select([client.fileno()], [], [], max(0.0, min(client.due_s(now_s) - now_s, 0.1)))[0]:
            client.on_readable(time.monotonic())
    raise Unproved(f"{what} did not come within {within_s:.0f} s: {client.note}")
