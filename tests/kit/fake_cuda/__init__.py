"""The memory of a GPU for a worker that computes on a CPU: what torch's allocator says and does, beside a fake NVML device.

`install` puts it at the worker's one seam (`hardware.device_memory`) and makes each micro-batch take memory by its tokens. It
refuses as torch does, with its own class of error, beyond the soft limit as well as when the device itself is full; what it
holds shows on the NVML device, of which other programs take their share. `site/` does this in every worker below a test.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from kit import KIT, TESTS
from kit.fake_nvml import Control, attach
from memsup.shared.settings import Share

if TYPE_CHECKING:  # this is imported by workers as well
    import pytest

MIB = 1 << 20


def in_every_worker(monkeypatch: pytest.MonkeyPatch, *, weights_bytes: int, token_bytes: int) -> None:
    """Every worker below the test has such memory, on the fake library's devices."""
    monkeypatch.setenv("PYTHONPATH", f"{KIT / 'fake_cuda' / 'site'}:{TESTS}")
    monkeypatch.setenv("FAKE_CUDA", f"{weights_bytes // MIB} {token_bytes // MIB}")


class Allocator:
    """`memory.DeviceMemory`. `control`: the devices of a fake NVML library; without it there is nobody else. `card`: which of
    them it is.
    """

    def __init__(
        self,
        *,
        weights_bytes: int,
        token_bytes: int,
        total_bytes: int = 10 << 30,
        control: Control | None = None,
        card: int = 0,
    ) -> None:
        self.total_bytes, self._weights, self._token = total_bytes, weights_bytes, token_bytes
        self._allocated = self._reserved = weights_bytes
        self.limit_bytes = total_bytes
        self._peak = weights_bytes
        self._device = control.device[card] if control is not None else None
        self.cards = int(control.devices) if control is not None else 1
        self.uuid = self._device.uuid.decode() if self._device is not None else None
        self.limits: list[int] = []
        self.waits = 0
        """How often the host waited for all that the device had been given."""
        if self._device is not None:
            self._device.frees_of_dead = 1
        self._show()

    def allocated_bytes(self) -> int:
        return self._allocated

    def reserved_bytes(self) -> int:
        return self._reserved

    def others_bytes(self) -> int:
        return int(self._device.others_bytes) + CONTEXT_BYTES if self._device is not None else 0

    def peak_bytes(self) -> int:
        return self._peak

    def reset_peak(self) -> None:
        self._peak = self._allocated

    def release(self) -> None:
        self._allocated = self._reserved = self._weights
        self._show()

    def limit(self, size_bytes: int) -> None:
        self.limits.append(size_bytes)
        self.limit_bytes = size_bytes

    def page_locked(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def finish_queued(self) -> None:
        self.waits += 1

    def compute(self, tokens: int) -> None:
        """One micro-batch. Raises `torch.OutOfMemoryError`."""
        need = self._weights + tokens * self._token
        if need > self._reserved:
            free = self.total_bytes - (self._device.others_bytes + CONTEXT_BYTES if self._device is not None else 0)
            if need > min(self.limit_bytes, free):
                self.release()  # as torch does before it gives up
                raise torch.OutOfMemoryError(
                    f"CUDA out of memory. Tried to allocate {tokens * self._token / MIB:.2f} MiB. GPU 0 has a total capacity "
                    f"of {self.total_bytes / MIB:.2f} MiB; {self.limit_bytes / MIB:.2f} MiB allowed."
                )
            self._reserved = need
        self._allocated = need
        self._peak = max(self._peak, need)
        self._show()

    def _show(self) -> None:
        if self._device is not None:
            self._device.worker_pid, self._device.worker_bytes = os.getpid(), self._reserved + CONTEXT_BYTES


CONTEXT_BYTES = 400 * MIB


def install(allocator: Allocator) -> None:
    """Into this process, which is a worker's or stands for one."""
    from memsup.worker import train
    from memsup.worker.ranks import other

    def device_memory(_device: torch.device, limit: Any) -> Allocator:
        allocator.limit(int(limit.fraction * allocator.total_bytes) if isinstance(limit, Share) else limit)
        return allocator

    right = train.to_device

    def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
        allocator.compute(batch["input_ids"].numel())
        return right(batch, device)

    train.device_memory, train.to_device = device_memory, to_device  # type: ignore[assignment]
    train.cards, other.device_memory = (lambda _device: allocator.cards), device_memory  # type: ignore[assignment]


def install_from_environment(rank: int) -> None:
    """FAKE_CUDA="WEIGHTS_MIB TOKEN_MIB", beside the NVML devices of FAKE_NVML, of which each rank has its own."""
    weights, token = (int(text) * MIB for text in os.environ["FAKE_CUDA"].split())
    install(Allocator(weights_bytes=weights, token_bytes=token, control=attach(os.environ["FAKE_NVML"]), card=rank))
