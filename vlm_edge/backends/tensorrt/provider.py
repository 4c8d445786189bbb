"""The same build and run through ONNX Runtime's TensorRT execution provider. Not run here; see library.py."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.backends.tensorrt import cuda
from vlm_edge.backends.tensorrt.engine_key import Machine
from vlm_edge.backends.tensorrt.settings import BuildSettings

Provider = str | tuple[str, dict[str, str]]
NAME = "TensorrtExecutionProvider"


def machine_of(runtime_version: str) -> Machine:
    """The first visible GPU with the TensorRT inside an ONNX Runtime, which does not tell its version but has one for each.

    runtime_version: of ONNX Runtime.  Raises MissingDependency or BadInput without a driver or a GPU.
    """
    return Machine(*cuda.describe_gpu(), f"onnxruntime-{runtime_version}")


def execution_providers(settings: BuildSettings, out_dir: Path, machine: Machine) -> list[Provider]:
    """What `onnxruntime.InferenceSession(graph, providers=...)` takes to run a graph through TensorRT.

    Engines and timings are cached in a folder of `out_dir` that carries the machine in its name, since ONNX Runtime's own
    names hold the compute capability but not the GPU; ONNX Runtime makes it, in an `out_dir` that exists. With fp16 and int8
    off, it builds a strongly typed network from the graph's own types. What TensorRT leaves goes to CUDA and not to the CPU,
    where it would be slow in silence.
    """
    cache = str(out_dir / f"onnxruntime-{machine.stem}")
    least, best, largest = (named_shape(settings.input_name, shape) for shape in settings.shapes())
    options = {
        "device_id": "0",
        "trt_max_workspace_size": str(settings.workspace_bytes),
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": best,
        "trt_profile_max_shapes": largest,
    }
    return [(NAME, options), ("CUDAExecutionProvider", {"device_id": "0"})]


def named_shape(name: str, shape: tuple[int, ...]) -> str:
    """`pixel_values:7x3x336x336`: how both ONNX Runtime and trtexec take a shape."""
    return f"{name}:{'x'.join(map(str, shape))}"
