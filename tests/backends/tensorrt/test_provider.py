"""Options for ONNX Runtime's TensorRT provider, in the text that it documents."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.backends.tensorrt.engine_key import Machine
from vlm_edge.backends.tensorrt.provider import execution_providers
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.units import MIB


def test_the_options_say_what_a_build_says() -> None:
    settings = BuildSettings(4, 7, (3, 336, 336), 256 * MIB)
    (name, options), (fallback, _) = execution_providers(
        settings, Path("/b/vision"), Machine("Orin", "8.7", "10.3.0.30")
    )
    assert (name, fallback) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options == {
        "device_id": "0",
        "trt_max_workspace_size": "268435456",
        "trt_fp16_enable": "0",
        "trt_int8_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/b/vision/onnxruntime-orin-sm87-trt10.3.0.30",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/b/vision/onnxruntime-orin-sm87-trt10.3.0.30",
        "trt_profile_min_shapes": "pixel_values:1x3x336x336",
        "trt_profile_opt_shapes": "pixel_values:4x3x336x336",
        "trt_profile_max_shapes": "pixel_values:7x3x336x336",
    }
