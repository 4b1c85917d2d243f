"""CUDA is often dead in a process after a sleep (pytorch/pytorch#88639): told by the error's class and the clocks."""

from __future__ import annotations

import msgspec
import pytest
import torch

from memsup.shared.messages import FailureCause
from memsup.supervisor.decide.run.restarts import BUDGET, FIRST_DELAY_S, Budget, Cause, Death, judge
from memsup.worker.__main__ import failed, is_cuda_dead
from memsup.worker.session import GiveUp

UNKNOWN = "CUDA error: unknown error\nCUDA kernel errors might be asynchronously reported at some other API call"


def crashed(error: BaseException) -> GiveUp:
    """As the training passes on what ended a step."""
    found = GiveUp(FailureCause.CRASH, "Step 7 crashed", step=7)
    found.__cause__ = error
    return found


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (torch.AcceleratorError(UNKNOWN), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_a_dead_cuda_is_told_from_memory_and_from_faults_of_a_program(error: Exception, dead: bool) -> None:
    assert is_cuda_dead(error) is is_cuda_dead(crashed(error)) is dead


def test_after_a_sleep_another_worker_goes_on_and_nothing_is_counted() -> None:
    said = failed(crashed(torch.AcceleratorError(UNKNOWN)), "night", slept_s=7200.0)
    assert (said.cause, said.step) == (FailureCause.AFTER_SLEEP, None)
    assert "The machine slept, and CUDA is dead in the worker since then (CUDA error: unknown error)" in said.message
    assert said.traceback is not None
    spent = Budget(deaths=BUDGET, durable_step=100, failed_step=7, failures=2)
    verdict = judge(Death(exit_status=1, last_words=said), spent, 100, 0.5)
    assert (verdict.cause, verdict.again, verdict.smaller) == (Cause.AFTER_SLEEP, True, False)
    assert verdict.delay_s == FIRST_DELAY_S
    assert verdict.budget == spent


def test_without_a_sleep_the_same_error_is_a_crash_like_any_other() -> None:
    said = failed(crashed(torch.AcceleratorError(UNKNOWN)), "night", slept_s=0.2)
    assert (said.cause, said.step) == (FailureCause.CRASH, 7)
    assert judge(Death(exit_status=1, last_words=said), Budget(), None, 0.5).budget.deaths == 1
    fault = failed(crashed(RuntimeError("shapes cannot be multiplied")), "night", slept_s=7200.0)
    assert fault.cause is FailureCause.CRASH
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=type(said)) == said
