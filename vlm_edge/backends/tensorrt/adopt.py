"""Takes in an engine that trtexec built on this machine. Not run with TensorRT itself; see library.py."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.backends.tensorrt import engine_key
from vlm_edge.backends.tensorrt.build import this_machine
from vlm_edge.backends.tensorrt.engine_key import EngineKey
from vlm_edge.backends.tensorrt.library import failure, import_tensorrt, open_log
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput


def adopt_engine(built: Path, graph: Path, out_dir: Path, settings: BuildSettings) -> Path:
    """Copy an engine made by `emit_script`'s script into `out_dir`, under this machine's key and with a record.

    It is opened with TensorRT first, which itself refuses an engine of another GPU or version, and its range of views is
    compared with the settings. That it came from `graph` is the caller's word: an engine does not tell. TensorRT runs
    what an engine holds, so take in only what you built.  Returns the copy's path.  Raises BadInput for an engine that
    cannot be opened here or was built for other views.
    """
    tensorrt = import_tensorrt()
    key = EngineKey(this_machine(tensorrt), engine_key.graph_digest(graph), settings)
    try:
        data = built.read_bytes()
    except OSError as cause:
        raise BadInput(f"{built} cannot be read: {cause}", remedy="name the engine that trtexec wrote") from cause
    log = open_log(tensorrt)
    log.errors.clear()
    engine = tensorrt.Runtime(log).deserialize_cuda_engine(data)
    if engine is None:
        raise failure(log, f"TensorRT cannot open {built}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = [
        tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(settings.input_name, 0))
        for name in names
        if name == settings.input_name
    ]
    if found != [settings.shapes()]:
        raise BadInput(
            f"{built} was built for {found[0] if found else 'other inputs'}, not for {settings.shapes()}",
            remedy="run the script that --emit-script writes for this recipe",
        )
    return engine_key.publish(out_dir, key, data)
