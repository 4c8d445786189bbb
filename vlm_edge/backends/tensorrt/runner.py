"""The vision tower and projector as a TensorRT engine. Not run with TensorRT itself; see library.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.tensorrt import engine_key
from vlm_edge.backends.tensorrt.build import this_machine
from vlm_edge.backends.tensorrt.cuda import Stream
from vlm_edge.backends.tensorrt.library import failure, import_tensorrt, open_log
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, CheckFailed

_FOREIGN = "build the engine from an encoder that vlm-edge exported"


class TensorRtEncoder:
    """Runs pixels [B, 3, S, S] -> features [B, P, Dl], at most as many views at a time as the engine was built for.

    Input and output have one buffer each, of the profile's largest shape, made once; TensorRT's own scratch memory is
    made once with the context. So `device_bytes` is known after construction and no call raises it.
    """

    def __init__(self, engine: Path) -> None:
        tensorrt = import_tensorrt()
        data = engine_key.read_engine(engine, this_machine(tensorrt))
        self._log = open_log(tensorrt)
        self._log.errors.clear()
        self._stream = Stream()
        self._runtime = tensorrt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise failure(self._log, f"TensorRT cannot open {engine}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise failure(self._log, f"TensorRT cannot run {engine}")
        self._input, self._input_type = self._only(tensorrt, tensorrt.TensorIOMode.INPUT)
        self._output, self._output_type = self._only(tensorrt, tensorrt.TensorIOMode.OUTPUT)
        least, _, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape(self._input, 0))
        if least[0] != 1:
            raise BadInput(f"{engine} takes no fewer than {least[0]} views", remedy=_FOREIGN)
        self.max_views, self._view_shape = int(largest[0]), largest[1:]
        self._feature_shape = self._shape_for(self.max_views)[1:]
        self._pixels = self._stream.allocate(_size_bytes(largest, self._input_type))
        self._features = self._stream.allocate(_size_bytes((self.max_views, *self._feature_shape), self._output_type))
        for name, buffer in ((self._input, self._pixels), (self._output, self._features)):
            if not self._context.set_tensor_address(name, buffer.address):
                raise failure(self._log, f"TensorRT refuses a buffer for {name}")

    @property
    def device_bytes(self) -> int:
        """Device memory that a call needs: TensorRT's scratch memory and both buffers; the weights come on top."""
        scratch = int(getattr(self._engine, "device_memory_size_v2", 0) or 0)
        return scratch + self._pixels.size_bytes + self._features.size_bytes

    @property
    def inputs(self) -> tuple[str, ...]:
        """The name of the only array that `encode` needs."""
        return (self._input,)

    def encode(self, pixels: Floats | Mapping[str, NDArray[Any]], *, check: bool = True) -> Floats:
        """Pixels [B, 3, S, S], alone or by name -> visual embeddings [B, P, Dl] in fp32.

        check: refuse values that are not finite.  Raises CheckFailed for those, BadInput for another shape.
        """
        pixels = pixels[self._input] if isinstance(pixels, Mapping) else pixels
        if pixels.shape[1:] != self._view_shape:
            raise BadInput(
                f"views of {list(pixels.shape[1:])} do not go into an engine for {list(self._view_shape)}",
                remedy="build an engine from this model's own encoder",
            )
        self._stream.make_current()
        features = np.empty((len(pixels), *self._feature_shape), np.float32)
        for start in range(0, len(pixels), self.max_views):
            features[start : start + self.max_views] = self._run(pixels[start : start + self.max_views])
        if check and not np.isfinite(features).all():
            raise CheckFailed(
                "the vision encoder produced values that are not finite",
                remedy="export the vision encoder again with --dtype fp32",
            )
        return features

    def close(self) -> None:
        """Give all device memory back, TensorRT's objects first; the encoder cannot be used afterwards."""
        self._stream.make_current()
        self._context = self._engine = self._runtime = None
        self._pixels.free()
        self._features.free()
        self._stream.close()

    def __enter__(self) -> TensorRtEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, pixels: Floats) -> NDArray[Any]:
        self._log.errors.clear()
        shape = self._shape_for(len(pixels))
        sent = np.ascontiguousarray(pixels, self._input_type)
        received = np.empty(shape, self._output_type)
        self._stream.upload(self._pixels, sent)
        if not self._context.execute_async_v3(self._stream.handle):
            # The copy may still be reading `sent`.
            self._stream.wait()
            raise failure(self._log, "TensorRT could not run the encoder")
        self._stream.download(received, self._features)
        self._stream.wait()
        return received

    def _shape_for(self, views: int) -> tuple[int, ...]:
        """Set the input's shape and return the output's."""
        if not self._context.set_input_shape(self._input, (views, *self._view_shape)):
            raise failure(self._log, f"TensorRT refuses {views} views")
        shape = tuple(int(size) for size in self._context.get_tensor_shape(self._output))
        if len(shape) != 3 or shape[0] != views or min(shape) < 1:
            raise BadInput(
                f"the engine's output for {views} views is {list(shape)}, not [views, P, Dl]", remedy=_FOREIGN
            )
        return shape

    def _only(self, tensorrt: Any, mode: Any) -> tuple[str, Any]:
        """The single tensor of a mode, and its NumPy type."""
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        names = [name for name in names if self._engine.get_tensor_mode(name) == mode]
        if len(names) != 1:
            raise BadInput(f"the engine has {len(names)} tensors of {mode}, not one", remedy=_FOREIGN)
        known = {tensorrt.DataType.FLOAT: np.float32, tensorrt.DataType.HALF: np.float16}
        kind = self._engine.get_tensor_dtype(names[0])
        if kind not in known:
            raise BadInput(f"the engine's {names[0]} is {kind}; fp32 and fp16 can be run", remedy=_FOREIGN)
        return names[0], known[kind]


def _size_bytes(shape: tuple[int, ...], kind: Any) -> int:
    return int(np.prod(shape, dtype=np.int64)) * int(np.dtype(kind).itemsize)
