"""Where tensors lie that stay between runs: in the host's memory, as numpy arrays, or on a provider's device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from recycle_onnx.contract import CacheType
from recycle_onnx.errors import RecycleError

Array = NDArray[Any]
Shape = tuple[int, ...]


class Buffer(Protocol):
    """A tensor that graphs read and write in place."""

    @property
    def value(self) -> ort.OrtValue:
        """What to bind."""

    def read(self) -> Array:
        """Return the content: the very memory on the host, a copy of what lies on a device."""

    def write_rows(self, rows: Array, start: int = 0) -> None:
        """Put [1, K, n, D] behind the first `start` rows of a [1, K, capacity, D]; what follows is unspecified."""


class Memory(Protocol):
    """A place for tensors. Two are equal where a tensor of the one can be bound to a session of the other."""

    @property
    def is_host(self) -> bool:
        """Whether numpy sees what lies here."""

    def zeros(self, shape: Shape, dtype: CacheType) -> Buffer:
        """Allocate a new tensor of zeros."""


class HostBuffer:
    """A numpy array; its OrtValue is an alias, and does not keep it alive."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.value = ort.OrtValue.ortvalue_from_numpy(array)

    def read(self) -> Array:
        return self.array

    def write_rows(self, rows: Array, start: int = 0) -> None:
        self.array[:, :, start : start + rows.shape[2]] = rows


@dataclass(frozen=True)
class HostMemory:
    """The memory of the process."""

    is_host: bool = True

    def zeros(self, shape: Shape, dtype: CacheType) -> Buffer:
        return HostBuffer(np.zeros(shape, dtype))


class DeviceBuffer:
    """A tensor in a device's memory, which only graphs touch; to read or to write it is to copy."""

    def __init__(self, value: ort.OrtValue, dtype: CacheType) -> None:
        self.value, self._dtype = value, dtype
        value.update_inplace(np.zeros(value.shape(), dtype))  # memory that was another's may hold NaN

    def read(self) -> Array:
        content: Array = self.value.numpy()
        return content

    def write_rows(self, rows: Array, start: int = 0) -> None:
        whole = self.read() if start else np.zeros(self.value.shape(), self._dtype)
        whole[:, :, start : start + rows.shape[2]] = rows
        self.value.update_inplace(whole)


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a GPU (or NPU): ONNX Runtime's name of it, the PCI id of its vendor, and the device's number."""

    name: str
    vendor: int
    number: int
    is_host: bool = False

    def zeros(self, shape: Shape, dtype: CacheType) -> Buffer:
        kind = "npu" if "npu" in self.name.lower() else "gpu"
        make = ort.OrtValue.ortvalue_from_shape_and_type
        try:
            value = make(list(shape), np.dtype(dtype).type, kind, self.number, self.vendor)
            return DeviceBuffer(value, dtype)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            size = math.prod(shape) * np.dtype(dtype).itemsize / 1e6
            raise RecycleError(f"{self.name}: no memory for {size:.0f} MB of a text's caches ({error})") from error


HOST = HostMemory()
"""One for all: memories are compared to see whether a copy is needed."""


def input_memory(session: ort.InferenceSession) -> dict[str, Memory]:
    """Return where the session reads each of its required inputs."""
    return _memory(session.get_inputs(), session.get_input_memory_infos())


def output_memory(session: ort.InferenceSession) -> dict[str, Memory]:
    """Return where the session writes each of its outputs."""
    return _memory(session.get_outputs(), session.get_output_memory_infos())


def _memory(values: list[Any], infos: list[Any]) -> dict[str, Memory]:
    return {value.name: _of(info) for value, info in zip(values, infos, strict=True)}


def _of(info: Any) -> Memory:
    # What a provider pins for the host counts as the host's own: numpy reads and writes it.
    if info.name == "Cpu" or info.device_mem_type == ort.OrtDeviceMemoryType.HOST_ACCESSIBLE:
        return HOST
    return DeviceMemory(info.name, info.device_vendor_id, info.device_id)
