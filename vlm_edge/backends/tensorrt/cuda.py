"""The few calls of CUDA's driver API that a runner needs, through ctypes: device, memory, copies, one stream.

Why the driver's library and not the runtime's (libcudart) or the cuda-python package: it comes with every NVIDIA driver
and with JetPack under one name whatever the CUDA version is, it tells the GPU's name without a struct whose layout
changes between versions, and nothing has to be installed beside TensorRT. Device memory and streams of both interfaces
are the same things, as long as the device's primary context is the current one. Tested against a stand-in with C calling
conventions; not run on a GPU.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import BadInput, DoesNotFit, MissingDependency
from vlm_edge.units import format_bytes

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_OUT_OF_MEMORY, _NO_DEVICE = 2, 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NON_BLOCKING = 1
_NAME_BYTES = 256

# Device pointers are 64-bit integers, handles are pointers. The suffixes are part of the names that the library exports.
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
}


def load_library() -> Any:
    """The driver's library; raises MissingDependency where there is none."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as cause:
        raise MissingDependency(
            f"there is no NVIDIA driver: {LIBRARY} cannot be loaded",
            remedy="install NVIDIA's driver (nvidia-smi shows whether it works), or run with --device cpu",
        ) from cause


def _prepared(library: Any) -> dict[str, Any]:
    """The library's functions with their argument types; without these ctypes would cut pointers to 32 bits."""
    functions = {}
    for name, arguments in _PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
        functions[name] = function
    return functions


class Driver:
    """Calls by name, with errors for status codes."""

    def __init__(self) -> None:
        self._functions = _prepared(load_library())
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """One call; raises BadInput where it fails."""
        status = self._functions[name](*arguments)
        if status == _NO_DEVICE:
            raise BadInput(
                "no CUDA device is visible", remedy="check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
            )
        if status:
            text = c_char_p()
            self._functions["cuGetErrorName"](status, byref(text))
            reason = text.value.decode() if text.value else f"status {status}"
            raise BadInput(f"{name} failed: {reason}", remedy="see whether nvidia-smi works, and start again")

    def status(self, name: str, *arguments: Any) -> int:
        """One call's status, for callers who know what it means."""
        return int(self._functions[name](*arguments))

    def device(self, ordinal: int = 0) -> int:
        """The handle of the first visible device: the one that TensorRT uses when nothing else is said."""
        handle = c_int()
        self.call("cuDeviceGet", byref(handle), ordinal)
        return handle.value


def describe_gpu() -> tuple[str, str]:
    """Name and compute capability of the first visible GPU, as in ("Orin", "8.7"); no context is made.

    Raises MissingDependency without a driver, BadInput without a device.
    """
    driver = Driver()
    device = driver.device()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.call("cuDeviceGetName", name, _NAME_BYTES, device)
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = c_int()
        driver.call("cuDeviceGetAttribute", byref(value), attribute, device)
        numbers.append(value.value)
    return name.value.decode(), f"{numbers[0]}.{numbers[1]}"


class Buffer:
    """Device memory, freed by `free` or with the object; `address` is what TensorRT is given."""

    def __init__(self, driver: Driver, size_bytes: int) -> None:
        pointer = c_uint64()
        status = driver.status("cuMemAlloc_v2", byref(pointer), size_bytes)
        if status == _OUT_OF_MEMORY:
            raise DoesNotFit(
                f"the GPU has no {format_bytes(size_bytes)} left for the encoder's input and output",
                remedy="close what else uses the GPU, or build the engine for fewer tiles (--max-tiles)",
            )
        if status:
            raise BadInput(
                f"cuMemAlloc failed: status {status}", remedy="see whether nvidia-smi works, and start again"
            )
        self.address = pointer.value
        self.size_bytes = size_bytes
        self._finalizer = weakref.finalize(self, driver.status, "cuMemFree_v2", self.address)
        # At exit the driver takes everything back, and may be gone before Python is.
        self._finalizer.atexit = False

    def free(self) -> None:
        """Give the memory back; further calls do nothing."""
        self._finalizer()


class Stream:
    """The first GPU's primary context, which TensorRT uses as well, and one stream in it."""

    def __init__(self) -> None:
        self.driver = Driver()
        context, stream = c_void_p(), c_void_p()
        # Kept until the process ends: TensorRT's own objects live in this context.
        self.driver.call("cuDevicePrimaryCtxRetain", byref(context), self.driver.device())
        self._context = context
        self.make_current()
        self.driver.call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self.handle = int(stream.value or 0)
        self._finalizer = weakref.finalize(self, self.driver.status, "cuStreamDestroy_v2", self.handle)
        self._finalizer.atexit = False

    def make_current(self) -> None:
        """Select the context for the calling thread: which is current is a thread's own affair."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> Buffer:
        """Device memory; raises DoesNotFit when there is too little."""
        return Buffer(self.driver, size_bytes)

    # The copies are queued on the stream, in order with the kernels. The plain ones run on another stream and may
    # return before their data has arrived.
    def upload(self, buffer: Buffer, array: NDArray[Any]) -> None:
        """Queue a copy of a contiguous array; it must live and stay unchanged until `wait` returns."""
        self._fits(buffer, array)
        self.driver.call("cuMemcpyHtoDAsync_v2", buffer.address, array.ctypes.data, array.nbytes, self.handle)

    def download(self, array: NDArray[Any], buffer: Buffer) -> None:
        """Queue a copy into a contiguous array; its values are there when `wait` returns."""
        self._fits(buffer, array)
        self.driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, buffer.address, array.nbytes, self.handle)

    def wait(self) -> None:
        """Until everything queued is done; errors of the kernels show here."""
        self.driver.call("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Destroy the stream; further calls do nothing."""
        self._finalizer()

    def _fits(self, buffer: Buffer, array: NDArray[Any]) -> None:
        if not array.flags.c_contiguous or array.nbytes > buffer.size_bytes or np.dtype(array.dtype).hasobject:
            raise ValueError(f"an array of {array.nbytes} bytes does not go into {buffer.size_bytes}")
