"""The running half of the pretended TensorRT: engines that hold an ONNX graph and are run by ONNX Runtime."""

from __future__ import annotations

import ctypes
import json
from typing import Any

import numpy as np

from tests.backends.tensorrt.fake_tensorrt import MAGIC, DataType, FakeTensorRt, Severity, Strict, TensorIOMode

_KINDS = {1: DataType.FLOAT, 10: DataType.HALF}
_NUMPY = {DataType.FLOAT: np.float32, DataType.HALF: np.float16}


class Runtime(Strict):
    __slots__ = ()

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        fake, data = self._fake, bytes(serialized_engine)
        assert data.startswith(MAGIC), "TensorRT would read something that is no engine"
        head, model = data[len(MAGIC) :].split(b"\n", 1)
        engine = CudaEngine(fake, self._log, json.loads(head), model)
        if fake.engine_error:
            self._log.log(Severity.ERROR, fake.engine_error)
            return None
        return engine


class CudaEngine(Strict):
    __slots__ = ("_inputs", "_model", "_outputs", "_profile", "_session")

    def __init__(self, fake: FakeTensorRt, logger: Any, head: dict[str, Any], model: bytes) -> None:
        import onnx
        import onnxruntime

        super().__init__(fake, logger)
        self._profile = head["profile"]
        self._model = onnx.load_from_string(model)
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._model.graph.input]
        self._outputs = [value.name for value in self._model.graph.output]

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def get_tensor_name(self, index: int) -> str:
        return (*self._outputs, *self._inputs)[index]  # in no order that a caller may count on

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        values = {value.name: value for value in (*self._model.graph.input, *self._model.graph.output)}
        return _KINDS[values[name].type.tensor_type.elem_type]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert (name, profile_index) == (self._profile[0], 0)
        return [tuple(shape) for shape in self._profile[1:]]

    def create_execution_context(self) -> ExecutionContext | None:
        if self._fake.context_error:
            self._log.log(Severity.ERROR, self._fake.context_error)
            return None
        return ExecutionContext(self._fake, self._log, self)


class ExecutionContext(Strict):
    __slots__ = ("_addresses", "_engine", "_shape")

    def __init__(self, fake: FakeTensorRt, logger: Any, engine: CudaEngine) -> None:
        super().__init__(fake, logger)
        self._engine, self._addresses, self._shape = engine, {}, None
        fake.alive += 1

    def __del__(self) -> None:
        self._fake.alive -= 1

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(least) or not all(a <= b <= c for a, b, c in zip(least, shape, largest, strict=True)):
            self._log.log(Severity.ERROR, f"Set dimension {shape} for tensor {name} does not satisfy any profile.")
            return False
        self._shape = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._features(np.zeros(self._shape, self._kind(self._engine._inputs[0])), name).shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._addresses[name] = memory
        return memory != 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        fake, source, target = self._fake, self._engine._inputs[0], self._engine._outputs[0]
        assert fake.cuda.has_context(), "TensorRT would use another context"
        fake.events.append(("run", self._shape))
        if fake.run_error or {source, target} != set(self._addresses):
            self._log.log(Severity.ERROR, fake.run_error or "Neither address nor allocator is set for a tensor.")
            return False
        shape, addresses = self._shape, dict(self._addresses)

        def launch() -> None:
            kind = np.dtype(self._kind(source))
            size = int(np.prod(shape)) * kind.itemsize
            held = (ctypes.c_char * size).from_address(fake.cuda.block(addresses[source], size))
            features = np.ascontiguousarray(self._features(np.frombuffer(held, kind).reshape(shape), target))
            ctypes.memmove(fake.cuda.block(addresses[target], features.nbytes), features.ctypes.data, features.nbytes)

        fake.cuda.streams[stream_handle].append(launch)
        return True

    def _features(self, pixels: np.ndarray, name: str) -> np.ndarray:
        return self._engine._session.run([name], {self._engine._inputs[0]: pixels})[0]

    def _kind(self, name: str) -> type:
        return _NUMPY[self._engine.get_tensor_dtype(name)]
