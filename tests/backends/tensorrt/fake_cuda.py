"""A CUDA driver on the host: C functions with the signatures of cuda.h, host memory for device memory, a real queue.

Copies and launches do nothing until the stream is synchronised, as on a device; a call that needs a context fails in a
thread that selected none; a function that is not listed does not exist.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, INVALID_VALUE = 2, 100, 201, 1
_NAMES = {
    0: b"CUDA_SUCCESS",
    1: b"CUDA_ERROR_INVALID_VALUE",
    2: b"CUDA_ERROR_OUT_OF_MEMORY",
    719: b"CUDA_ERROR_LAUNCH_FAILED",
}
_STREAM, _CONTEXT, _DEVICE = 0x7F00_DEAD_BEE0, 0x7F00_C0DE_0010, 0
_ATTRIBUTES = {75: 0, 76: 1}


class FakeCuda:
    """name, capability: the GPU. limit_bytes: its memory. devices: 0 for none. failing: function -> status."""

    def __init__(self) -> None:
        self.name, self.capability = "NVIDIA Fake RTX 4090", (8, 9)
        self.limit_bytes, self.devices = 1 << 30, 1
        self.failing: dict[str, int] = {}
        self.calls: list[str] = []
        self.memory: dict[int, ctypes.Array] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self._thread = threading.local()
        self._initialised = False
        self._kept: list[object] = []
        self._export("cuInit", self._init, c_uint)
        self._export("cuGetErrorName", self._error_name, c_int, c_void_p)
        self._export("cuDeviceGet", self._device, c_void_p, c_int)
        self._export("cuDeviceGetName", self._device_name, c_void_p, c_int, c_int)
        self._export("cuDeviceGetAttribute", self._attribute, c_void_p, c_int, c_int)
        self._export("cuDevicePrimaryCtxRetain", self._retain, c_void_p, c_int)
        self._export("cuCtxSetCurrent", self._current, c_void_p)
        self._export("cuMemAlloc_v2", self._allocate, c_void_p, c_size_t)
        self._export("cuMemFree_v2", self._free, c_uint64)
        self._export("cuMemcpyHtoDAsync_v2", self._upload, c_uint64, c_void_p, c_size_t, c_void_p)
        self._export("cuMemcpyDtoHAsync_v2", self._download, c_void_p, c_uint64, c_size_t, c_void_p)
        self._export("cuStreamCreate", self._stream, c_void_p, c_uint)
        self._export("cuStreamSynchronize", self._synchronize, c_void_p)
        self._export("cuStreamDestroy_v2", self._destroy, c_void_p)

    def _export(self, name: str, function: Callable[..., int], *arguments: type) -> None:
        def guarded(*values: object) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            if name not in ("cuInit", "cuGetErrorName") and not self._initialised:
                return 3
            return function(*values)

        entry = CFUNCTYPE(c_int, *arguments)(guarded)
        self._kept.append(entry)
        # A second pointer to the same code: the caller sets its own argument types, and must not change ours.
        setattr(self, name, ctypes.cast(entry, CFUNCTYPE(c_int)))

    def has_context(self) -> bool:
        return getattr(self._thread, "context", 0) == _CONTEXT

    def block(self, address: int, size_bytes: int) -> int:
        """The address again, if so many bytes from there lie in one allocation."""
        for start, memory in self.memory.items():
            if start <= address and address + size_bytes <= start + len(memory):
                return address
        raise AssertionError(f"{size_bytes} bytes at {address:#x} are not device memory")

    def _init(self, flags: int) -> int:
        if self.devices == 0:
            return NO_DEVICE
        self._initialised = flags == 0
        return 0

    def _error_name(self, status: int, out: int) -> int:
        if status not in _NAMES:
            return INVALID_VALUE
        c_char_p.from_address(out).value = _NAMES[status]
        return 0

    def _device(self, out: int, ordinal: int) -> int:
        c_int.from_address(out).value = _DEVICE
        return 0 if ordinal < self.devices else 101

    def _device_name(self, out: int, size: int, device: int) -> int:
        text = self.name.encode()[: size - 1] + b"\0"
        ctypes.memmove(out, text, len(text))
        return 0 if device == _DEVICE else 101

    def _attribute(self, out: int, attribute: int, device: int) -> int:
        c_int.from_address(out).value = self.capability[_ATTRIBUTES[attribute]]
        return 0 if device == _DEVICE else 101

    def _retain(self, out: int, device: int) -> int:
        c_void_p.from_address(out).value = _CONTEXT
        return 0 if device == _DEVICE else 101

    def _current(self, context: int | None) -> int:
        self._thread.context = context
        return 0 if context == _CONTEXT else INVALID_CONTEXT

    def _allocate(self, out: int, size: int) -> int:
        if not self.has_context():
            return INVALID_CONTEXT
        if size == 0:
            return INVALID_VALUE
        if sum(map(len, self.memory.values())) + size > self.limit_bytes:
            return OUT_OF_MEMORY
        memory = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(memory)] = memory
        c_uint64.from_address(out).value = ctypes.addressof(memory)
        return 0

    def _free(self, address: int) -> int:
        if not self.has_context():
            return INVALID_CONTEXT
        return 0 if self.memory.pop(address, None) is not None else INVALID_VALUE

    def _upload(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copy(self.block(target, size), source, size, stream)

    def _download(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copy(target, self.block(source, size), size, stream)

    def _copy(self, target: int, source: int, size: int, stream: int) -> int:
        if not self.has_context():
            return INVALID_CONTEXT
        self.streams[stream].append(lambda: ctypes.memmove(target, source, size))
        return 0

    def _stream(self, out: int, flags: int) -> int:
        if not self.has_context() or flags != 1:
            return INVALID_CONTEXT
        self.streams[_STREAM] = []
        c_void_p.from_address(out).value = _STREAM
        return 0

    def _synchronize(self, stream: int) -> int:
        if not self.has_context():
            return INVALID_CONTEXT
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return 0

    def _destroy(self, stream: int) -> int:
        return 0 if self.streams.pop(stream, None) is not None else INVALID_VALUE
