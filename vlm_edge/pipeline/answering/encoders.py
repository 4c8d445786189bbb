"""The vision encoder of a bundle on a device, checked against what the manifest says of it."""

from __future__ import annotations

from pathlib import Path

from vlm_edge.core.bundle import Bundle, cache_folder
from vlm_edge.core.contracts import EncoderRunner, SaliencyRunner
from vlm_edge.errors import BadInput, VlmEdgeError

TENSORRT = "tensorrt"
SALIENCY_ROLE = "saliency.graph"


def decoder_target(device: str) -> str:
    """Whose decoder a device runs: TensorRT is for the vision encoder alone, the decoder beside it is CUDA's."""
    return "cuda" if device == TENSORRT else device


def open_encoder(bundle: Bundle, device: str, threads: int) -> EncoderRunner:
    """The encoder on `cpu`, `cuda` or `tensorrt`.

    tensorrt: this machine's engine; without one ONNX Runtime's TensorRT provider, which builds its own on the first call.
    Raises DamagedBundle for a graph that is missing or not the manifest's, BadInput or MissingDependency with the remedy.
    """
    if device == TENSORRT:
        return _through_tensorrt(bundle, threads)
    from vlm_edge.backends.onnx.runner import OnnxEncoder

    encoder = OnnxEncoder(bundle.path("vision.graph", target=device), target=device, threads=threads)
    encoder.check_model(bundle.manifest.model)
    return encoder


def open_saliency(bundle: Bundle, named: str | None, threads: int) -> SaliencyRunner:
    """The saliency model in a file, or the bundle's own; on the CPU, whatever the device.

    Raises BadInput where there is none, or it cannot be used.
    """
    from vlm_edge.backends.onnx.saliency import OnnxSaliency

    if named is not None:
        return OnnxSaliency(Path(named), threads=threads)
    graph = bundle.find(SALIENCY_ROLE)
    if graph is None:
        raise BadInput(
            f"bundle {bundle.manifest.name} has no saliency model",
            remedy="name one with --saliency-model FILE, or use --saliency detail",
        )
    return OnnxSaliency(graph, threads=threads)


def _through_tensorrt(bundle: Bundle, threads: int) -> EncoderRunner:
    from vlm_edge.backends.onnx.runner import OnnxEncoder
    from vlm_edge.backends.onnx.session import has_provider, import_runtime
    from vlm_edge.backends.tensorrt import provider
    from vlm_edge.backends.tensorrt.build import find_engine
    from vlm_edge.backends.tensorrt.runner import TensorRtEncoder
    from vlm_edge.pipeline.exporting.engines import settings_of

    graph = bundle.path("vision.graph", target=TENSORRT)
    try:
        return TensorRtEncoder(find_engine(graph))
    except VlmEdgeError:
        if not has_provider(provider.NAME):
            raise
    folder = cache_folder() / "tensorrt" / bundle.manifest.self_sha256[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        why = f"ONNX Runtime's engines cannot be kept in {folder}: {cause}"
        raise BadInput(why, remedy="set XDG_CACHE_HOME to a folder that can be written") from cause
    machine = provider.machine_of(str(import_runtime().__version__))
    chosen = provider.execution_providers(settings_of(bundle), folder, machine)
    encoder = OnnxEncoder(graph, target="cuda", threads=threads, providers=chosen)
    encoder.check_model(bundle.manifest.model)
    return encoder
