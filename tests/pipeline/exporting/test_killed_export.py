"""SIGKILL at random moments of an export into a bundle that works; benchmarks/kill_export.py does it to the whole command."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import exportable
from vlm_edge.core.bundle import open_bundle, verify_hashes
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

KILLS = 3
PRELOADED = ["torch.onnx", "transformers.models.llava.modeling_llava", "onnxruntime", "onnxscript", "tests.exportable"]
INT8 = ExportOptions(dtype="int8", threads=1)


def visible(folder: Path) -> dict[str, bytes]:
    """All but what is hidden: the lock, and the stage that a killed process could not clear away."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if not name.parts[0].startswith(".")}


def dtypes(out: Path) -> list[str]:
    return [a.dtype for a in open_bundle(out).manifest.artifacts if a.role == "vision.graph"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_killed_at_random_moments_it_leaves_a_bundle_that_is_right(tmp_path: Path) -> None:
    model, base = tmp_path / "tiny", tmp_path / "base"
    exportable.save("llava", model)
    with exportable.exporting_once():
        export_model(model, base, ExportOptions(threads=1))
        begun = time.perf_counter()
        export_model(model, tmp_path / "measured", INT8)
        seconds = time.perf_counter() - begun
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)  # imported once; each child is a process of its own
    first = processes.Process(target=time.sleep, args=(0,))
    first.start()
    first.join()
    moments, killed = random.Random(0), 0
    for number in range(KILLS):
        out = Path(shutil.copytree(base, tmp_path / str(number)))
        child = processes.Process(target=exportable.export_in_child, args=(exportable.EXPORTED, model, out, INT8))
        child.start()
        child.join(moments.uniform(0.05, 0.5) * seconds)  # a child may be faster than what was measured
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        verify_hashes(open_bundle(out), force=True)
        assert verify_bundle(out, threads=1).ok
        if "vision/cpu/model.onnx" in visible(out) and dtypes(out) == ["fp32"]:
            assert visible(out) == visible(base)
    assert killed
    with exportable.exporting_once():
        export_model(model, out, INT8)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".export-")]
    assert dtypes(out) == ["int8"]
