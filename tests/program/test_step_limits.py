"""A real limit, set as `Step` sets it from what the supervisor says: memory runs out in a child, which goes on."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kit import ROOT

CHILD = """
import json, resource, torch
from memsup.memory import held
from memsup.cut_events import Begins, RanOut
from memsup.step import Step

ROW_BYTES, ROWS = 8 << 20, 16
torch.set_num_threads(1)

class Wide(torch.autograd.Function):
    '''Takes so much for each row where it is told to.'''
    @staticmethod
    def forward(ctx, x, where):
        ctx.where = where
        if where != "backward":
            torch.empty(len(x) * ROW_BYTES, dtype=torch.uint8)
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        if ctx.where == "backward":
            torch.empty(len(gradient) * ROW_BYTES, dtype=torch.uint8)
        return gradient, None

def trained(where, limit_bytes, told):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(model, optimizers=optimizer, tell=told.append, memory_limit_bytes=limit_bytes)
    loss_of = lambda part: Wide.apply(model(part), where).square().mean()
    for _ in range(5):
        if where == "evaluate":
            with torch.no_grad():
                step.predict(torch.randn(ROWS, 4), lambda part: Wide.apply(model(part), where))
            step.micro_batch(torch.randn(ROWS, 4), lambda part: model(part).square().mean())
        else:
            step.micro_batch(torch.randn(ROWS, 4), loss_of)
        optimizer.step()
        optimizer.zero_grad()
    step.memory_limit(None)
    return model, torch.get_rng_state()

trained("forward", None, [])  # so that all libraries are loaded
found = {}
for where in ("forward", "backward", "evaluate"):
    told = []
    alone, drawn = trained(where, None, told)
    assert not told
    limit_bytes = held().anonymous_bytes + (64 << 20) + 6 * ROW_BYTES
    model, drawn_too = trained(where, limit_bytes, told)
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    apart = max(float((a - b).abs().max()) for a, b in zip(alone.state_dict().values(), model.state_dict().values()))
    begun = [list(event) for event in told if isinstance(event, Begins)]
    ran_out = [list(event[:4]) for event in told if isinstance(event, RanOut)]
    is_told_before = isinstance(told[0], Begins) or where == "evaluate"
    found[where] = [is_told_before, begun, ran_out, apart, bool(torch.equal(drawn, drawn_too))]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_below_a_real_limit_memory_runs_out_and_the_training_is_what_it_would_have_been() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={"PYTHONPATH": str(ROOT / "build" / "links"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    for where, (is_told_before, begun, told, apart, draws_the_same) in json.loads(done.stdout).items():
        assert is_told_before, "whoever is killed for the first part that it computes has not told how large that was"
        assert begun[0] == [16, 16, 16 * 4]
        assert told[0] == [where, "cpu", 16 * 4, 8 * 4]
        assert len(told) <= 2  # and then it has found what fits
        assert all(event[3] is not None for event in told)
        assert apart < 1e-6
        assert draws_the_same
