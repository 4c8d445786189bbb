"""ONNX graph -> strongly typed TensorRT engine, with a timing cache, keyed by what it was built on.

Not run with TensorRT itself; see library.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_edge.backends.tensorrt import cuda, engine_key, progress
from vlm_edge.backends.tensorrt.engine_key import EngineKey, Machine
from vlm_edge.backends.tensorrt.library import failure, import_tensorrt, open_log
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import BadInput, DamagedBundle

_REEXPORT = "export the encoder again with --target tensorrt"


def this_machine(tensorrt: Any = None) -> Machine:
    """The first visible GPU and the installed TensorRT; raises MissingDependency or BadInput without them."""
    module = import_tensorrt() if tensorrt is None else tensorrt
    name, capability = cuda.describe_gpu()
    return Machine(name, capability, str(module.__version__))


def ensure_engine(
    graph: Path, out_dir: Path, settings: BuildSettings, *, report: progress.Report | None = None
) -> Path:
    """The engine of this machine, TensorRT, graph and settings; built where there is none, or where it is damaged.

    An engine that differs in any of them has another name and is left alone: two machines may share a folder.
    """
    machine = this_machine()
    engine = out_dir / EngineKey(machine, engine_key.graph_digest(graph), settings).file_name
    try:
        engine_key.read_engine(engine, machine)
    except DamagedBundle:
        return build_engine(graph, out_dir, settings, report=report)
    return engine


def find_engine(graph: Path) -> Path:
    """This machine's engine of a graph, in the graph's folder; the newest where several settings were built.

    Raises BadInput when there is none, naming a machine that there is one for.
    """
    machine, digest = this_machine(), engine_key.graph_digest(graph)
    fitting, others = [], set()
    for engine in sorted(graph.parent.glob("*.engine")):
        try:
            key = engine_key.read_record(engine).key
        except DamagedBundle:
            continue
        if key.machine == machine and key.graph_sha256 == digest:
            fitting.append(engine)
        else:
            others.add("another graph" if key.machine == machine else str(key.machine))
    if not fitting:
        seen = f"; there is one for {', and one for '.join(sorted(others))}" if others else ""
        raise BadInput(f"{graph.parent} has no TensorRT engine for {machine}{seen}", remedy=engine_key.REBUILD)
    return max(fitting, key=lambda engine: engine.stat().st_mtime_ns)


def build_engine(graph: Path, out_dir: Path, settings: BuildSettings, *, report: progress.Report | None = None) -> Path:
    """Build an engine on this machine and write it, its record and the timing cache into `out_dir`, each atomically.

    The graph's own types decide the precision (strong typing): nothing is lowered behind the caller's back. Takes
    minutes; `report` is told of the progress and may raise to cancel.  Returns the engine's path.  Raises
    MissingDependency without TensorRT or a driver, and BadInput, with TensorRT's own reason, for a graph that its parser
    or builder refuses; nothing is left behind then.
    """
    tensorrt = import_tensorrt()
    machine = this_machine(tensorrt)
    key = EngineKey(machine, engine_key.graph_digest(graph), settings)
    log = open_log(tensorrt)
    log.errors.clear()
    try:
        builder = tensorrt.Builder(log)
    except (TypeError, RuntimeError) as cause:  # the bindings' way to say that the library returned nothing
        raise failure(log, f"TensorRT could not start on {machine.gpu}") from cause
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = _parse(tensorrt, graph, network, log)
    _check_input(graph, network, settings)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    if not settings.tf32:
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    _add_profile(builder, config, settings)
    timings = out_dir / f"{machine.stem}.timing"
    _load_timings(config, timings)
    watcher = progress.monitor(tensorrt, report) if report else None
    if watcher is not None:
        config.progress_monitor = watcher
    serialized = builder.build_serialized_network(network, config)
    del parser  # held until here: the weights that the network refers to are the parser's
    if watcher is not None and watcher.failure is not None:
        raise watcher.failure
    if serialized is None:
        raise failure(log, f"TensorRT could not build an engine from {graph}")
    _save_timings(config.get_timing_cache(), timings)
    return engine_key.publish(out_dir, key, memoryview(serialized))


def _parse(tensorrt: Any, graph: Path, network: Any, log: Any) -> Any:
    parser = tensorrt.OnnxParser(network, log)
    # By path, not by content: weights in external data are found from it.
    if parser.parse_from_file(str(graph)):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        raise failure(log, f"TensorRT cannot read {graph}")
    first = errors[0]
    name = first.node_name()
    where = f"node {name!r} ({first.node_operator()}): " if name else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise BadInput(f"TensorRT cannot read {graph}: {where}{first.desc()}{more}", remedy=_REEXPORT)


def _check_input(graph: Path, network: Any, settings: BuildSettings) -> None:
    """The graph must have the one input that the settings speak of, with any number of views."""
    found = [(network.get_input(i).name, tuple(network.get_input(i).shape)) for i in range(network.num_inputs)]
    expected = [(settings.input_name, (-1, *settings.view_shape))]
    if found != expected:
        shown = ", ".join(f"{name}{list(shape)}" for name, shape in found) or "nothing"
        wanted = f"{settings.input_name}{[-1, *settings.view_shape]}"
        raise BadInput(f"{graph} takes {shown}; an engine of these settings takes {wanted}", remedy=_REEXPORT)


def _add_profile(builder: Any, config: Any, settings: BuildSettings) -> None:
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(settings.input_name, *settings.shapes())
        index = config.add_optimization_profile(profile)
    except RuntimeError as cause:
        raise BadInput(f"TensorRT refuses the range of views: {cause}", remedy=_REEXPORT) from cause
    if index < 0:
        raise BadInput(f"TensorRT refuses the range of 1 to {settings.max_views} views", remedy=_REEXPORT)


def _load_timings(config: Any, path: Path) -> None:
    """Attach the timing cache of earlier builds on this machine; one that is damaged or foreign counts as empty."""
    try:
        saved = path.read_bytes()
    except OSError:
        saved = b""
    for content in (saved, b"") if saved else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _save_timings(cache: Any, path: Path) -> None:
    if cache is None:
        return
    with engine_key.writing(path.parent), atomic_write(path) as stream:
        stream.write(memoryview(cache.serialize()))
