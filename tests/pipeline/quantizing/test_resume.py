"""Interrupted runs go on and write the same bytes, wherever hidden states are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import quantizable
from tests.quantizable import OPTIONS, hashes
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.quantizing import run as quantize_run
from vlm_edge.pipeline.quantizing.quantize import WORK, quantize_model
from vlm_edge.quant.workspace import Workspace


def test_two_runs_and_a_run_with_a_spill_file_write_the_same_bytes(
    llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, calib=data)
    quantize_model(llama[0], tmp_path / "a", options)
    real = quantize_run.Run._estimate

    def only_spilled_fits(self: Any, lengths: Any = None) -> Any:
        return replace(real(self, lengths), resident=1 << 50)

    monkeypatch.setattr(quantize_run.Run, "_estimate", only_spilled_fits)
    done = quantize_model(llama[0], tmp_path / "b", replace(options, max_memory_bytes=8 << 30))
    assert done.report["memory"]["hidden_states"] == "file"
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


KILLED = """
import os, random, signal, sys, time, traceback
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[4]))
import vlm_edge.pipeline.quantizing.run
import vlm_edge.pipeline.quantizing.calibration_set
from vlm_edge.pipeline.quantizing.quantize import quantize_model
from tests.quantizable import OPTIONS
model, data, out = map(Path, sys.argv[1:4])
options = replace(OPTIONS, calib=data)
moments = random.Random(0)

def run(seconds):
    # A fork has everything imported, so that the moments fall into the work.
    child = os.fork()
    if not child:
        try:
            quantize_model(model, out, options)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == 0 or (ended == -signal.SIGKILL and seconds is not None), ended

started = time.monotonic()
quantize_model(model, out.with_name("whole"), options)
whole = time.monotonic() - started
finished = []
for _ in range(int(sys.argv[5])):
    run(moments.uniform(0, whole))
    finished.append((out / "llm/awq/config.json").exists())
run(None)
print(sum(finished))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_writes_the_same_bytes(
    llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    paths = [llama[0], data, tmp_path / "out"]
    kills = os.environ.get("VLM_EDGE_TEST_KILLS", "6")
    command = [sys.executable, "-c", KILLED, *map(str, paths), str(torch.get_num_threads()), kills]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "llm", "reports"}
    assert not (tmp_path / "out" / WORK).exists()


def test_a_run_that_is_killed_while_it_tidies_up_can_be_repeated(
    llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, calib=data)
    real = shutil.rmtree

    def killed_half_way(folder: Path, **given: Any) -> None:
        layer = Path(folder) / "layer-000.safetensors"
        if not layer.exists():
            return real(folder, **given)
        layer.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            quantize_model(llama[0], tmp_path / "out", options)
    assert (tmp_path / "out" / WORK).exists()
    assert quantize_model(llama[0], tmp_path / "out", options).report["resumed_layers"] == 0
    quantize_model(llama[0], tmp_path / "whole", options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("failing", ["write_layer", "start"])
def test_a_full_disk_is_an_error_and_the_run_goes_on_later(
    failing: str, llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, calib=data)
    real, calls = getattr(Workspace, failing), []

    def full_at_the_last(self: Workspace, *given: Any) -> Any:
        calls.append(given)
        if failing == "start" or len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, failing, full_at_the_last)
        with pytest.raises(BadInput, match=r"cannot be written: .*No space left on device"):
            quantize_model(llama[0], tmp_path / "out", options)
    assert not (tmp_path / "out/llm/awq").exists()
    done = quantize_model(llama[0], tmp_path / "out", options)
    assert done.report["resumed_layers"] == (1 if failing == "write_layer" else 0)
    quantize_model(llama[0], tmp_path / "whole", options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_work_of_other_options_is_not_continued(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data), on_progress=stop)
    assert (tmp_path / "out" / WORK / "layer-000.safetensors").exists()
    options = replace(OPTIONS, calib=data, symmetric=True)
    done = quantize_model(llama[0], tmp_path / "out", options)
    assert done.report["resumed_layers"] == 0
    quantize_model(llama[0], tmp_path / "other", options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")


def new_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for part in messages[0].content %}{% if part.type == 'image' %}<image>{% else %}"
        "Q: {{ part.text }} A:{% endif %}{% endfor %}"
    )


def new_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"a":', '"\u00e4":'))


@pytest.mark.parametrize("change", [new_template, new_tokens])
def test_work_on_other_prompts_is_not_continued(change: Callable[[Path], None], data: Path, tmp_path: Path) -> None:
    """The weights stay; what the calibration data becomes does not."""
    model, out, options = tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data, seqlen=128)
    quantizable.save_vlm("llava", model)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    for folder in (out, tmp_path / "same"):
        with pytest.raises(KeyboardInterrupt):
            quantize_model(model, folder, options, on_progress=stop)
    same = quantize_model(model, tmp_path / "same", options)
    assert same.report["resumed_layers"] == 1
    change(model)
    done = quantize_model(model, out, options)
    assert done.report["resumed_layers"] == 0
    quantize_model(model, tmp_path / "new", options)
    assert hashes(out) == hashes(tmp_path / "new")
    assert hashes(out) != hashes(tmp_path / "same")
