"""Another rank's end of its sockets to rank 0, as its session knows it (`session.Upstream`). One thread reads what rank 0 says,
another tells twice a second that the process is alive. Where rank 0 is gone the process ends at once: nothing is lost with it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable

from memsup.shared.messages import AnyOrder, AnyReport, Decided, Failed, Leaving, OutOfMemory, WorkerMemory
from memsup.worker.link import BEAT_S, STARTING, MustFail, MustLeave, RanksNow, Snapshot
from memsup.worker.memory import read_memory
from memsup.worker.ranks import messages as m


class RankLink:
    """Public to the main thread: `orders`, `work`, `snapshot`, `gpu`, `say` and `report`."""

    def __init__(self, end: socket.socket, rank: int) -> None:
        self.orders: queue.SimpleQueue[AnyOrder | MustLeave | MustFail] = queue.SimpleQueue()
        self.work: queue.SimpleQueue[m.Begin | m.Compute | m.Evaluate | m.Add] = queue.SimpleQueue()
        self.snapshot: Snapshot = STARTING
        self.read_memory: Callable[[], WorkerMemory] = read_memory
        self.ranks_now: RanksNow = tuple
        self.gpu: str | None = None
        """The UUID of the GPU that it computes on."""
        self._end, self._rank = end, rank
        threading.Thread(target=self._read, name="link", daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def say(self, message: m.ToFirst) -> None:
        """Tells rank 0; where that is gone, the reading thread sees it."""
        with contextlib.suppress(OSError):
            m.send(self._end, message)

    def report(self, message: AnyReport) -> None:
        """Tells rank 0 what a worker would tell its supervisor, as far as that is not rank 0's own business."""
        match message:
            case OutOfMemory():
                self.say(m.Said(report=_of_rank(message, self._rank)))
            case Decided():
                self.say(
                    m.Said(report=Decided(what=message.what, detail=f"Rank {self._rank}: {message.detail}", step=message.step))
                )
            case Failed() | Leaving():
                self.say(m.Said(report=message))

    def _read(self) -> None:
        while (message := m.receive_from_first(self._end)) is not None:
            if isinstance(message, m.Obey):
                self.orders.put(message.order)
            else:
                self.work.put(message)
        os._exit(0)

    def _beat(self) -> None:
        wait = threading.Event().wait
        while not wait(BEAT_S):
            seen = self.snapshot
            memory = None
            with contextlib.suppress(MemoryError, OSError):
                memory = self.read_memory()
            self.say(
                m.Beat(
                    ticks=seen.progress.ticks,
                    micro_tokens=seen.batch.micro_tokens if seen.batch else None,
                    resident_bytes=memory.resident_bytes if memory else None,
                    gpu=self.gpu,
                    cuda_allocated_bytes=memory.cuda_allocated_bytes if memory else None,
                    cuda_reserved_bytes=memory.cuda_reserved_bytes if memory else None,
                )
            )


def _of_rank(report: OutOfMemory, rank: int) -> OutOfMemory:
    return OutOfMemory(
        where=report.where,
        device=report.device,
        step=report.step,
        micro_tokens_before=report.micro_tokens_before,
        micro_tokens_after=report.micro_tokens_after,
        detail=report.detail,
        rank=rank,
    )
