"""A hot summer night with and without the heat control, and what watching a GPU costs.

    .venv/bin/python benchmarks/heat.py [--hours 8] [--plot docs/hot-night.svg]

The device is the tests' library (`tests/kit/fake_nvml/`, needs a C compiler): an RTX 3080 whose cooler would let it pass 100 °C
at full load, in a room that goes from 26 to 38 °C. Probe, client and control are the real ones. The best constant duty is found
by search on the same device, knowing the night beforehand. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from kit import fake_nvml
from kit.fake_nvml.night import Night, best_constant_duty, controlled_night, hottest

from memsup.supervisor.sense.gpu.client import GpuClient
from memsup.supervisor.sense.gpu.facts import facts

SLOWDOWN_C, PACE_C, HOLD_C = 95, 87, 90
ROOM_C, WARMER_C = 26.0, 12.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--hours", type=float, default=8.0)
    options.add_argument("--plot", type=Path)
    arguments = options.parse_args()
    seconds = int(arguments.hours * 3600)
    with tempfile.TemporaryDirectory() as folder:
        library = fake_nvml.build(Path(folder))
        fake = fake_nvml.FakeNvml(library, Path(folder) / "control")
        os.environ |= fake.environment
        met = hot_night(library, fake, seconds, arguments.plot)
        cost(fake)
    return 0 if met else 1


def hot_night(library: Path, fake: fake_nvml.FakeNvml, seconds: int, plot: Path | None) -> bool:
    fake.control.clock_s = 0
    fake.set(0, ambient_c=ROOM_C, ambient_c_per_h=WARMER_C / (seconds / 3600))
    without_c = hottest(library, fake, seconds, 1.0)
    best = best_constant_duty(library, fake, seconds, PACE_C + 2)
    client = GpuClient()
    began_s = time.monotonic()
    night = controlled_night(fake, client, seconds)
    took_s = time.monotonic() - began_s
    client.close()
    held = sum(decision.hold for decision in night.decisions)
    print(f"{seconds / 3600:g} hours, room {ROOM_C:.0f} to {ROOM_C + WARMER_C:.0f} °C, {took_s:.0f} s to simulate")
    print(f"without control: hottest {without_c:.1f} °C (the device slows itself down at {SLOWDOWN_C})")
    slowed = f"{fake[0].slowdowns:.0f} slowdowns by the device, {held} s held"
    print(f"with control: hottest {max(night.celsius):.1f} °C (pace level {PACE_C}), {slowed}")
    ratio = night.mean_duty / best
    print(f"mean duty {night.mean_duty:.1%}; best constant duty, found by search: {best:.1%}; ratio {ratio:.1%}")
    if plot is not None:
        plot.write_text(drawing(night, seconds), encoding="utf-8")
    return max(night.celsius) <= PACE_C + 2 and fake[0].slowdowns == 0 and held == 0 and ratio >= 0.9


def cost(fake: fake_nvml.FakeNvml) -> None:
    """On the real clock: answers, the client's own CPU, memory, a start, and a hang."""
    fake.control.clock_s = -1
    began_s = time.monotonic()
    facts(30)
    print(f"facts (start, one look, close): {(time.monotonic() - began_s) * 1000:.0f} ms")
    client = GpuClient()
    client.wake()
    answers_s: list[float] = []
    spawn_s = 0.0
    cpu_s = 0.0
    began_s = time.monotonic()
    while (now_s := time.monotonic()) < began_s + 20:
        before = resource.getrusage(resource.RUSAGE_SELF)
        without_child = client.pid is None
        client.on_tick(now_s)
        asked_s = time.monotonic()
        if without_child and client.pid is not None:
            spawn_s = asked_s - now_s
        ready = select.select([client.fileno()], [], [], max(0.0, client.due_s(now_s) - asked_s))[0]
        if ready and client.on_readable(time.monotonic()):
            answers_s.append(time.monotonic() - asked_s)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    status = Path(f"/proc/{client.pid}/status").read_text(encoding="ascii")
    resident_kib = int(status.split("VmRSS:")[1].split()[0])
    client.close()
    percentiles = statistics.quantiles(answers_s[1:], n=100)
    print(f"answers: {len(answers_s)} in 20 s, p50 {percentiles[49] * 1000:.2f} ms, p99 {percentiles[98] * 1000:.2f} ms")
    print(f"start of a probe holds the loop for {spawn_s * 1000:.1f} ms; the client takes {cpu_s / 20:.2%} of a core")
    print(f"probe's resident memory: {resident_kib / 1024:.1f} MiB")


def drawing(night: Night, seconds: int) -> str:
    """Temperature and duty over the night, as an SVG that needs nothing else."""
    width, height, left, right, top = 900, 420, 52, 12, 28
    split, bottom = 250, 396

    def x(second: float) -> float:
        return left + second / seconds * (width - left - right)

    def y_c(celsius: float) -> float:
        return split - (celsius - 20) / (100 - 20) * (split - top)

    def y_duty(duty: float) -> float:
        return bottom - 20 - duty * (bottom - split - 60)

    def line(values: list[float], y, colour: str, dash: str = "") -> str:  # type: ignore[no-untyped-def]
        step = max(1, len(values) // 900)
        points = " ".join(f"{x(second):.1f},{y(values[second]):.1f}" for second in range(0, len(values), step))
        return f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" stroke-dasharray="{dash}" points="{points}"/>'

    def label(at_x: float, at_y: float, text: str, anchor: str = "start") -> str:
        return f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{text}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        "<title>Temperature and duty over a hot night</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        label(left, 16, "Temperature, °C"),
        label(left, split + 34, "Part of the time computed"),
    ]
    for celsius, text in ((SLOWDOWN_C, f"slows itself down at {SLOWDOWN_C}"), (HOLD_C, f"hold {HOLD_C}"), (PACE_C, "")):
        parts.append(f'<path d="M{left} {y_c(celsius):.1f}H{width - right}" stroke="#bbb" stroke-dasharray="4 4"/>')
        parts.append(label(width - right, y_c(celsius) - 3, text, "end"))
    for celsius in (PACE_C, 60, 40, 20):
        parts.append(f'<path d="M{left} {y_c(celsius):.1f}H{width - right}" stroke="#bbb" stroke-dasharray="1 3"/>')
        parts.append(label(left - 6, y_c(celsius) + 4, str(celsius), "end"))
    for duty in (0.0, 0.5, 1.0):
        parts.append(f'<path d="M{left} {y_duty(duty):.1f}H{width - right}" stroke="#bbb" stroke-dasharray="1 3"/>')
        parts.append(label(left - 6, y_duty(duty) + 4, f"{duty:.0%}", "end"))
    room = [ROOM_C + WARMER_C * second / seconds for second in range(len(night.celsius))]
    parts += [line(room, y_c, "#888", "2 2"), line(night.celsius, y_c, "#c2570c"), line(night.duty, y_duty, "#0f8a6d")]
    parts.append(label(left + 6, y_c(ROOM_C) - 6, "the room"))
    hours = seconds / 3600
    for hour in range(int(hours) + 1):
        parts.append(label(x(hour * 3600), height - 6, f"{hour} h", "middle"))
    return "\n".join([*filter(None, parts), "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
