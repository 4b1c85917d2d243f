"""One look at every GPU, for `start`, `check` and the beginning of a supervisor."""

from __future__ import annotations

from memsup.shared.clock import monotonic_s
from memsup.shared.descriptors import wait_ready
from memsup.supervisor.decide.readings import GpuReading
from memsup.supervisor.sense.gpu.library import LIBRARY, NO_DRIVER, may_be_found, unwatched


def facts(deadline_s: float) -> tuple[tuple[GpuReading, ...], str | None]:
    """The readings, or why there are none. Takes up to `deadline_s`, and no time where there is no driver."""
    if not may_be_found(LIBRARY):
        return (), unwatched(NO_DRIVER)
    from memsup.supervisor.sense.gpu.client import GpuClient, ProbeState

    began_s = monotonic_s()
    client = GpuClient()
    try:
        client.wake()
        while (now_s := monotonic_s()) < began_s + deadline_s:
            client.on_tick(now_s)
            if wait_ready([client], began_s + deadline_s - now_s):
                fresh = client.on_readable(monotonic_s())
                if fresh:
                    return tuple(fresh), None
            if client.state is ProbeState.ABSENT:
                return (), client.note
            if client.why is not None:
                return (), f"GPU readings are unknown: {client.why}."
        return (), f"GPU readings are unknown: the NVIDIA driver has not answered for {deadline_s:.0f} s."
    finally:
        client.close(within_s=0.5)
