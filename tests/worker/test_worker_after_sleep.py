"""CUDA is often dead in a process after a sleep (pytorch/pytorch#88639): told by the error's class and the clocks, of the
built-in training and of a program that is attached.
"""

from __future__ import annotations

import msgspec
import pytest
import torch

from memsup.life import last_words
from memsup.shared.messages import AnyReport, Failed, FailureCause
from memsup.sleep import Sleep, is_cuda_dead
from memsup.supervisor.decide.run.restarts import BUDGET, FIRST_DELAY_S, Budget, Cause, Death, judge
from memsup.worker.__main__ import failed
from memsup.worker.session import GiveUp

UNKNOWN = "CUDA error: unknown error\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Sleep:
    """Of two hours, since the process began."""
    began = Sleep()
    monkeypatch.setattr("memsup.sleep.asleep_s", lambda: began._before_s + 7200.0)
    return began


def crashed(error: BaseException) -> GiveUp:
    """As the training passes on what ended a step."""
    found = GiveUp(FailureCause.CRASH, "Step 7 crashed", step=7)
    found.__cause__ = error
    return found


def said_of_a_program(error: Exception, sleep: Sleep) -> Failed:
    """What the supervisor takes in of an attached program that ends so at step 7."""
    report = msgspec.convert(last_words(error, "Traceback …", 7, sleep), type=AnyReport)
    assert isinstance(report, Failed)
    return report


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
def test_a_dead_cuda_is_told_from_memory_and_from_faults_of_a_program(error: Exception, dead: bool, sleep: Sleep) -> None:
    assert is_cuda_dead(error) is dead
    causes = {found.cause for found in (failed(crashed(error), "night", sleep), said_of_a_program(error, sleep))}
    assert (FailureCause.AFTER_SLEEP in causes) is dead
    assert len(causes) == 1 or not dead


@pytest.mark.parametrize("is_command", [False, True])
def test_after_a_sleep_another_worker_goes_on_and_nothing_is_counted(is_command: bool, sleep: Sleep) -> None:
    error = torch.AcceleratorError(UNKNOWN)
    said = said_of_a_program(error, sleep) if is_command else failed(crashed(error), "night", sleep)
    assert said.cause is FailureCause.AFTER_SLEEP
    where = "the program" if is_command else "the worker"
    assert f"The machine slept, and CUDA is dead in {where} since then (CUDA error: unknown error)" in said.message
    assert said.traceback is not None
    spent = Budget(deaths=BUDGET, durable_step=100, failed_step=7, failures=2)
    verdict = judge(Death(exit_status=1, last_words=said, is_command=is_command, was_attached=is_command), spent, 100, 0.5)
    assert (verdict.cause, verdict.again, verdict.smaller) == (Cause.AFTER_SLEEP, True, False)
    assert verdict.delay_s == FIRST_DELAY_S
    assert verdict.budget == spent


def test_without_a_sleep_the_same_error_is_a_crash_like_any_other(sleep: Sleep, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = failed(crashed(RuntimeError("shapes cannot be multiplied")), "night", sleep)
    assert fault.cause is FailureCause.CRASH
    monkeypatch.setattr("memsup.sleep.asleep_s", lambda: sleep._before_s + 0.2)
    said = failed(crashed(torch.AcceleratorError(UNKNOWN)), "night", sleep)
    assert (said.cause, said.step) == (FailureCause.CRASH, 7)
    assert judge(Death(exit_status=1, last_words=said), Budget(), None, 0.5).budget.deaths == 1
    assert said_of_a_program(torch.AcceleratorError(UNKNOWN), sleep).cause is FailureCause.CRASH
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(said), type=type(said)) == said
