"""Tensors of a graph in a file beside it, written one after the other as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import TensorProto

ALIGNMENT = 64
"""Of every tensor's first byte: a cache line, which no kernel asks more than."""


class ExternalData:
    """The stream of a data file, and what the graph has to say about each tensor in it."""

    def __init__(self, stream: BinaryIO, location: str) -> None:
        self._stream, self._location = stream, location
        self._offset = 0
        self.tensors: list[TensorProto] = []

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Write an array; its dtype and shape become the tensor's."""
        self.begin(name, values.dtype, values.shape)
        self.write(values)

    def begin(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Announce a tensor whose bytes follow through `write`, for one that is too large to be held."""
        from onnx import TensorProto, helper

        padding = -self._offset % ALIGNMENT
        self._stream.write(bytes(padding))
        self._offset += padding
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", self._offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        self._end = self._offset + size

    def write(self, values: NDArray[Any]) -> None:
        """The next rows of the tensor that was begun; raises ValueError for more than it has."""
        data = np.ascontiguousarray(values)
        if self._offset + data.nbytes > self._end:
            raise ValueError(f"{self.tensors[-1].name} has no room for {data.nbytes} more bytes")
        self._stream.write(data.data.cast("B"))
        self._offset += data.nbytes

    def whole(self) -> bool:
        """Whether the last tensor has all of its bytes."""
        return not self.tensors or self._offset == self._end
