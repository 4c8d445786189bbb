"""Opening ONNX Runtime sessions, and the two ways in which an installation of it goes wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, MissingDependency

VARIANTS = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA = "the CUDA and cuDNN"
_LIBRARIES = {"TensorrtExecutionProvider": "the TensorRT and CUDA"}
"""What a provider loads when it starts."""
SAME_AS_REQUESTED, DEFAULT = 1, -1
"""How an arena grows (by what is asked for, not by doubling), and a setting that is left to ONNX Runtime."""
MOST_WASTED_BYTES = 1 << 20
"""A free block that is larger than a request by more than this is split."""
LOG_FATAL_ONLY = 4
"""Errors are raised; ONNX Runtime would also print them, amid a program's own output."""


def installed_variants() -> dict[str, str]:
    """Names and versions of the ONNX Runtime distributions that are installed."""
    found = {}
    for name in VARIANTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def import_runtime() -> Any:
    """The onnxruntime module; raises MissingDependency when none or both variants are installed."""
    found = installed_variants()
    if len(found) > 1:
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            remedy="pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'vlm-edge[cpu]' or 'vlm-edge[gpu]'",
        )
    try:
        import onnxruntime
    except ImportError as cause:
        raise MissingDependency(
            "ONNX Runtime is not installed" if not found else f"ONNX Runtime cannot be imported: {cause}",
            remedy="pip install 'vlm-edge[cpu]', or 'vlm-edge[gpu]' for a CUDA device",
        ) from cause
    return onnxruntime


def available_targets() -> tuple[str, ...]:
    """`cpu`, and `cuda` where ONNX Runtime was built with it."""
    providers = import_runtime().get_available_providers()
    return tuple(target for target, provider in PROVIDERS.items() if provider in providers)


def has_provider(name: str) -> bool:
    """Whether ONNX Runtime was built with an execution provider; that it starts is seen when a session is opened."""
    return name in import_runtime().get_available_providers()


class Graph:
    """An InferenceSession whose failures are errors of the bundle: what it is fed comes from the bundle's other files."""

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: list[str] | None, inputs: Mapping[str, Any]) -> Any:
        """As InferenceSession.run; raises DamagedBundle when it fails, DoesNotFit when memory ran out."""
        with self._failures():
            return self._session.run(outputs, inputs)

    def run_with_iobinding(self, binding: Any) -> None:
        """As InferenceSession.run_with_iobinding; raises as `run`."""
        with self._failures():
            self._session.run_with_iobinding(binding)

    def check_shapes(self, expected: Mapping[str, tuple[int | None, ...]]) -> None:
        """Raise DamagedBundle unless inputs and outputs of these names exist, with these sizes where both name one."""
        found = {value.name: value.shape for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        for name, wanted in expected.items():
            sizes = found.get(name, ())
            same = len(sizes) == len(wanted) and all(
                not isinstance(size, int) or want in (None, size) for size, want in zip(sizes, wanted, strict=True)
            )
            if not same:
                what = f"has {name} {_shape(sizes)}" if name in found else f"has no {name}"
                why = f"{self._path} {what}; the manifest's model needs {_shape(wanted)}"
                raise DamagedBundle(why, remedy="export the model again")

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as cause:  # ONNX Runtime's exceptions share no public base class
            if _memory_ran_out(cause):
                why = f"memory ran out while {self._path.name} ran"
                raise DoesNotFit(why, remedy="lower --max-tiles, or free memory and set --budget") from cause
            why = f"{self._path} does not fit the bundle: {first_line(cause)}"
            raise DamagedBundle(why, remedy="export the model again") from cause


_shared_arenas: list[Any] = []
"""The settings of the process's own arena, once there is one: ONNX Runtime takes them once."""


def share_arena() -> None:
    """Let CPU sessions that are opened from now on hold their tensors in one arena of this process.

    The decoder then works where the tower did, and what one call left free serves the next of another shape: by itself, ONNX
    Runtime gives each session an arena that doubles, and hands out blocks of up to twice the size that is asked for. Not for a
    process that opens sessions for a moment: the arena keeps what it has grown to.
    """
    runtime = import_runtime()
    if _shared_arenas:
        return
    arena = runtime.OrtArenaCfg(0, SAME_AS_REQUESTED, DEFAULT, MOST_WASTED_BYTES)
    kinds = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", *kinds), arena)
    _shared_arenas.append(arena)


def open_session(graph: Path, *, target: str, threads: int, providers: Sequence[Any] = (), mapped: bool = False) -> Any:
    """A Graph on one target; raises BadInput, MissingDependency or, for a bad graph, DamagedBundle.

    providers: in place of the target's own, as InferenceSession takes them; the first has to start.
    mapped: leave weights in the file, which the system reads and drops as it needs: for graphs larger than the memory. Weights in
    fp16 come to lie there in fp32 all the same, where a CPU has no kernels for fp16.
    """
    runtime = import_runtime()
    if target not in available_targets():
        raise BadInput(f"ONNX Runtime here has no {target}", remedy="use --device cpu, or pip install 'vlm-edge[gpu]'")
    chosen = list(providers) or [PROVIDERS[target]]
    first = chosen[0] if isinstance(chosen[0], str) else chosen[0][0]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_FATAL_ONLY
    # A pattern is a block beside what the first run left in the arena: the second run of a shape would hold more than the first.
    options.enable_mem_pattern = False
    if _shared_arenas:
        options.add_session_config_entry("session.use_env_allocators", "1")
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if target == "cuda" else "1")
    try:
        with _utf8(graph) as path:
            session = runtime.InferenceSession(str(path), options, providers=chosen)
    except Exception as cause:  # ONNX Runtime's exceptions share no public base class
        if _memory_ran_out(cause):
            raise DoesNotFit(
                f"memory ran out while {graph.name} was loaded",
                remedy="free memory, or use a bundle of fewer bits; vlm-edge plan tells what this one needs",
            ) from cause
        why = f"{graph} cannot be loaded: {first_line(cause)}"
        raise DamagedBundle(why, remedy="export the model again") from cause
    if first not in session.get_providers():
        # ONNX Runtime goes on with the CPU where a provider's own libraries are missing.
        raise MissingDependency(
            f"ONNX Runtime could not start {first}",
            remedy=f"install {_LIBRARIES.get(first, _CUDA)} that this onnxruntime-gpu was built for, or use --device cpu",
        )
    return Graph(session, graph)


@contextmanager
def _utf8(graph: Path) -> Iterator[Path]:
    """The graph under a name that ONNX Runtime takes: where its folder's own is not UTF-8, through a link to the folder."""
    if str(graph).encode("utf-8", "replace").decode() == str(graph):
        yield graph
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "graph"
        link.symlink_to(graph.parent.resolve(), target_is_directory=True)
        yield link / graph.name


def _memory_ran_out(cause: Exception) -> bool:
    return any(text in str(cause) for text in ("allocate memory", "bad_alloc"))


def _shape(sizes: tuple[Any, ...] | list[Any]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"


def first_line(error: BaseException) -> str:
    """An error's first line, for messages of two lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
