"""A `tensorrt` module with those calls of the Python bindings that we use, and no others.

Written from NVIDIA's published bindings (python/src/infer/pyCore.cpp, python/src/parsers/pyOnnx.cpp) for TensorRT 10 and
the list of what 11 removed. Like the bindings, its classes have no attributes beside their own, fail by returning None
or False with the reason in the log, and demand that subclasses construct their base. "Engines" hold the ONNX graph and
are run by ONNX Runtime, so that a runner's numbers can be compared.
"""

from __future__ import annotations

import enum
import json
import types
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.backends.tensorrt.fake_cuda import FakeCuda

MAGIC = b"fake engine\n"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class BuilderFlag(enum.IntEnum):
    TF32 = 7
    VERSION_COMPATIBLE = 16


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    BF16 = 7


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Constructed:
    """The bindings refuse a subclass whose __init__ did not construct its base."""

    _done = False

    def __init__(self) -> None:
        self._done = True


class ILogger(Constructed):
    Severity = Severity


class IProgressMonitor(Constructed):
    pass


class HostMemory(bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class FakeTensorRt:
    """The module and its knobs.

    parse_errors: (node, operator, description) each. build_error, engine_error, context_error: logged reasons to fail.
    events: what was called, in order.
    """

    cuda: FakeCuda
    version: str = "10.15.1.29"
    parse_errors: list[tuple[str, str, str]] = field(default_factory=list)
    build_error: str = ""
    engine_error: str = ""
    context_error: str = ""
    run_error: str = ""
    builder_error: bool = False
    events: list[tuple[Any, ...]] = field(default_factory=list)
    alive: int = 0

    def module(self, *, progress: bool = True) -> types.ModuleType:
        from tests.backends.tensorrt.fake_engine import Runtime

        module = types.ModuleType("tensorrt")
        module.__version__ = self.version
        for entry in (NetworkDefinitionCreationFlag, MemoryPoolType, BuilderFlag, TensorIOMode, DataType, ILogger):
            setattr(module, entry.__name__, entry)
        if progress:
            module.IProgressMonitor = IProgressMonitor
        module.Builder = lambda logger: Builder(self, logger)
        module.OnnxParser = lambda network, logger: OnnxParser(self, network, logger)
        module.Runtime = lambda logger: Runtime(self, logger)
        return module


def check_log(logger: Any) -> Any:
    assert isinstance(logger, ILogger)
    assert logger._done, "tensorrt.ILogger.__init__ was not called"
    return logger


class Strict:
    __slots__ = ("_fake", "_log")

    def __init__(self, fake: FakeTensorRt, logger: Any) -> None:
        self._fake, self._log = fake, check_log(logger)


class Builder(Strict):
    __slots__ = ()

    def __init__(self, fake: FakeTensorRt, logger: Any) -> None:
        super().__init__(fake, logger)
        if fake.builder_error:
            logger.log(Severity.INTERNAL_ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Network:
        assert type(flags) is int
        self._fake.events.append(("create_network", flags))
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self._fake, self._log)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
        fake = self._fake
        fake.events.append(("build", config._workspace, sorted(flag.name for flag in config._flags)))
        self._log.log(Severity.WARNING, "a warning is no reason")
        assert network._parser() is not None, "the parser and its weights are gone"
        if fake.build_error:
            self._log.log(Severity.ERROR, fake.build_error)
            return None
        if not config._profiles:
            self._log.log(
                Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile has been defined."
            )
            return None
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactic Selection", "Building Engine", 3)
            if not all(monitor.step_complete("Tactic Selection", step) for step in range(3)):
                fake.events.append(("cancelled",))
                self._log.log(Severity.ERROR, "Build was cancelled by the progress monitor.")
                return None
            monitor.phase_finish("Tactic Selection")
            # A phase may end before all of its steps were told.
            monitor.phase_finish("Building Engine")
        config._timings._entries += 1
        head = {"version": fake.version, "gpu": fake.cuda.name, "profile": config._profiles[0]._shapes}
        return HostMemory(MAGIC + json.dumps(head).encode() + b"\n" + network._model.SerializeToString())


class Network:
    __slots__ = ("_model", "_parser")

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    def get_input(self, index: int) -> types.SimpleNamespace:
        value = self._model.graph.input[index]
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim]
        return types.SimpleNamespace(name=value.name, shape=tuple(shape))


class ParserError:
    __slots__ = ("_error",)

    def __init__(self, error: tuple[str, str, str]) -> None:
        self._error = error

    def node_name(self) -> str:
        return self._error[0]

    def node_operator(self) -> str:
        return self._error[1]

    def desc(self) -> str:
        return self._error[2]


class OnnxParser(Strict):
    __slots__ = ("__weakref__", "_network")

    def __init__(self, fake: FakeTensorRt, network: Network, logger: Any) -> None:
        super().__init__(fake, logger)
        self._network = network

    def parse_from_file(self, model: str) -> bool:
        import onnx

        assert type(model) is str
        self._fake.events.append(("parse", Path(model).name))
        self._network._model = onnx.load(model)
        self._network._parser = weakref.ref(self)
        return not self._fake.parse_errors

    @property
    def num_errors(self) -> int:
        return len(self._fake.parse_errors)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._fake.parse_errors[index])


class OptimizationProfile:
    __slots__ = ("_shapes",)

    def set_shape(self, name: str, min: tuple, opt: tuple, max: tuple) -> None:
        if not all(low <= mid <= high for low, mid, high in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for opt is inconsistent with other shapes.")
        self._shapes = (name, list(min), list(opt), list(max))


class TimingCache:
    __slots__ = ("_entries", "_version")

    def __init__(self, version: str, entries: int) -> None:
        self._version, self._entries = version, entries

    def serialize(self) -> HostMemory:
        return HostMemory(f"timings {self._version} {self._entries}".encode())


class BuilderConfig(Strict):
    __slots__ = ("_flags", "_monitor", "_profiles", "_timings", "_workspace")

    def __init__(self, fake: FakeTensorRt, logger: Any) -> None:
        super().__init__(fake, logger)
        self._flags, self._profiles = {BuilderFlag.TF32}, []
        self._workspace, self._timings, self._monitor = None, None, None

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        assert isinstance(monitor, IProgressMonitor)
        assert monitor._done, "tensorrt.IProgressMonitor.__init__ was not called"
        self._monitor = monitor

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        assert type(pool_size) is int
        self._workspace = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(BuilderFlag(flag))

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        if any(size < 1 for shape in profile._shapes[1:] for size in shape):
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        if not serialized_timing_cache:
            return TimingCache(self._fake.version, 0)
        words = bytes(serialized_timing_cache).split()
        if len(words) != 3 or words[0] != b"timings":
            return None
        return TimingCache(words[1].decode(), int(words[2]))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert type(ignore_mismatch) is bool
        self._fake.events.append(("timings", cache._entries))
        if cache._version != self._fake.version and not ignore_mismatch:
            return False
        self._timings = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self._timings
