"""What Prometheus gets of all runs: scraped for real, read by Prometheus' own parser, and for nobody but this machine."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kit.cli_process import MEMSUP, a_run, control_server, memsup, said_on_a_terminal
from kit.statuses import GIB, a_status, full_status

from memsup.shared.interventions import Intervention
from memsup.shared.paths import run_paths
from memsup.shared.status import CoolingStatus, MemoryStatus, ProgressStatus, RunState, TemperatureStatus, encode_status

pytest.importorskip("prometheus_client", reason="NOT RUN: prometheus-client is not installed")

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@contextmanager
def served() -> Iterator[int]:
    """`memsup metrics`, up; gives its port."""
    with subprocess.Popen([*MEMSUP, "metrics", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(json.loads(process.stdout.readline())["url"].removesuffix("/metrics").rpartition(":")[2])
        finally:
            process.terminate()


def asked(port: int, path: str = "/metrics", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={name.title(): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def scraped(port: int) -> Samples:
    code, text = asked(port)
    assert code == 200
    return samples_of(text)


def samples_of(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = tuple(sorted((name, value) for name, value in sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "twice"
            found[sample.name][labels] = sample.value
    return found


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get(f"memsup_run_{name}", {}).get(tuple(sorted(labels.items())))


def said(event: str, **fields: Any) -> bytes:
    return json.dumps({"event": event, "reason": "why", "at": time.time()} | fields).encode() + b"\n"


def test_a_scrape_has_what_is_so_of_all_runs_and_nothing_that_is_not_known() -> None:
    guarded, stopped, odd = a_run("night"), a_run("before"), a_run("odd")
    seen = full_status()
    seen.temperatures.append(TemperatureStatus(name='of "others"\nmemsup_run_step{run="x"} 1', celsius=None))
    stopped.status.write_bytes(
        encode_status(a_status(RunState.RUNNING, progress=ProgressStatus(step=7), memory=MemoryStatus(worker_bytes=5)))
    )
    odd.status.write_bytes(b"{half")
    (guarded.state / "ledger.1.jsonl").write_bytes(said("death"))
    guarded.ledger.write_bytes(said("order", order="halve", outcome="done", by="ladder") + said("death") + b"{torn")
    with served() as port, control_server(guarded, lambda _: seen) as questions:
        samples = scraped(port)
        assert of(samples, "step", run="night") == 1240
        assert of(samples, "ram_bytes", run="night") == 2 * GIB
        assert of(samples, "ram_limit_bytes", run="night") == 20 * GIB
        assert of(samples, "temperature_celsius", run="night", sensor="k10temp Tctl") == 61.4
        assert of(samples, "gpu_temperature_celsius", run="night", gpu="0") == 88
        assert of(samples, "checkpoint_age_seconds", run="night") == 40
        assert of(samples, "loss", run="night") == 0.4123
        assert of(samples, "evaluation", run="night", metric="accuracy") == 0.79
        assert [of(samples, "state", run="night", state=state) for state in RunState].count(1) == 1
        assert of(samples, "interventions_total", run="night", kind="death") == 2
        assert of(samples, "interventions_total", run="night", kind="smaller") == 1
        # Of the one that nobody guards: where it is, and no reading.
        assert (of(samples, "guarded", run="before"), of(samples, "guarded", run="night")) == (0, 1)
        assert of(samples, "state", run="before", state="stopped") == 1
        assert of(samples, "step", run="before") == 7
        assert of(samples, "ram_bytes", run="before") is None
        assert of(samples, "loss", run="before") is None
        assert not any("odd" in str(labels) for found in samples.values() for labels in found)
        assert list(samples["memsup_run_temperature_celsius"]) == [(("run", "night"), ("sensor", "k10temp Tctl"))]
        # Asked again at once, it costs nobody anything; a second later what has come since is counted.
        assert scraped(port) == samples
        assert len(questions) == 1
        with guarded.ledger.open("ab") as ledger:
            ledger.write(b"\n" + said("freeze", by="ladder"))
        deadline_s = time.monotonic() + 20
        while of(scraped(port), "interventions_total", run="night", kind="freeze") != 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        assert of(scraped(port), "interventions_total", run="night", kind="death") == 2


def test_nobody_but_this_machine_is_answered() -> None:
    """A page in a browser may lead a name of its own here; it is that name which the browser says it wants."""
    a_run("night")
    with served() as port:
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1]", ""):
            code, text = asked(port, host=host)
            assert code == 403, host
            assert "memsup_run" not in text
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}"):
            assert asked(port, host=host)[0] == 200
        assert asked(port, "/")[0] == 404
        # Who connects and says nothing keeps nobody out.
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        assert asked(port)[0] == 200
        for one in silent:
            one.close()
        taken = memsup("metrics", "--port", str(port))
        assert taken.returncode == 1
        assert taken.stderr == (
            f"memsup: Port {port} is taken, by another memsup metrics or another program: choose another one with --port.\n"
        )


def test_the_package_that_it_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # as where it is not installed
    code, text = said_on_a_terminal(200, "metrics")
    assert code == 2
    assert "pip install 'memsup[metrics]'" in text


def test_names_are_those_that_prometheus_wants() -> None:
    """By the rules of `promtool check metrics`: base units at the end, `_total` for what only grows, and for nothing else."""
    from prometheus_client import CollectorRegistry, generate_latest

    from memsup.supervisor.client.measures import GAUGES, Runs

    paths = a_run("night")
    seen = full_status()
    seen.cooling = CoolingStatus(duty_fraction=0.5, power_fraction=1, holding=False, reason="hot", forecast_s=None)
    seen.disk_free_bytes, seen.result = 5, {"accuracy": 0.5}
    registry = CollectorRegistry()
    registry.register(Runs())
    with control_server(paths, lambda _: seen):
        text = generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {f"memsup_run_{name}" for name in [*GAUGES, "interventions"]}
    for name, family in families.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert not re.search(r"_(count|sum|bucket|total|gauge|counter|info)$", name)
        assert not re.search(r"milli|micros|mega|giga|kilo|minutes|hours|_ms|_mb|percent|_c$|_s$", name)
        assert {sample.name for sample in family.samples} == {name + ("_total" if family.type == "counter" else "")}
        assert all("run" in sample.labels for sample in family.samples)
    assert len(families["memsup_run_interventions"].samples) == len(Intervention)
    assert run_paths("night").status.exists() is False, "asking writes nothing"
