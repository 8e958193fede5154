"""The processes that train together, one a device, as `accelerate launch` started them; a single one without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from torch import Tensor, nn

from recycle_onnx.errors import InputError


class Processes:
    """The processes of a training: the device of this one, and the means to keep in step with the others."""

    def __init__(self) -> None:
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        # accelerate fixes its own precision for the life of a process; ours is the objective's
        self._accelerator: Any = Accelerator(mixed_precision="no", kwargs_handlers=[parallel])
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.index: int = self._accelerator.process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes, logs and reports."""
        return self.index == 0

    def prepare(self, objective: nn.Module) -> Any:
        """Wrap a module so that its gradients are the mean over all processes."""
        return self._accelerator.prepare_model(objective)

    def check_batch(self, size: int, parts: int) -> None:
        """Refuse a global batch that cannot be shared evenly, which would change its mean.

        Raises:
            InputError: `size` is no multiple of processes times `parts`.
        """
        if size % (self.count * parts):
            raise InputError(
                f"--batch-size is {size}; expected a multiple of {self.count * parts}, "
                f"{parts} parts (--gradient-accumulation) for each of {self.count} processes"
            )

    def share(self, batch: list[int], parts: int) -> list[list[int]]:
        """Return this process's windows of a global batch, by their numbers, in equal parts."""
        size = len(batch) // self.count
        own, part = batch[self.index * size : (self.index + 1) * size], size // parts
        return [own[start : start + part] for start in range(0, size, part)]

    def apart(self, objective: nn.Module) -> AbstractContextManager[None]:
        """Add gradients up in this process only, within the block."""
        context: AbstractContextManager[None] = self._accelerator.no_sync(objective)
        return context

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, the same in each."""
        return self.total(values) / self.count

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, the same in each."""
        total: Tensor = self._accelerator.reduce(values, reduction="sum")
        return total

    def agree(self, value: float) -> float:
        """Return the main process's value, in each process."""
        if self.count == 1:
            return value
        return float(broadcast(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """Let the first process of a machine run the block before the others, which find the cache filled."""
        with self._accelerator.local_main_process_first() if self.count > 1 else nullcontext():
            yield
