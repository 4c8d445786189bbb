"""`quantize` of models of the hub, through the way that `export` takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import quantizable
from tests.fake_hub import COMMIT, FakeHub, serving
from tests.quantizable import OPTIONS, hashes
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.quantizing.quantize import quantize_model

SEEING, PLAIN = "made-here/tiny-llava", "made-here/tiny-llama"
RTN = replace(OPTIONS, method="rtn")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saved")
    quantizable.save_vlm("llava", folder / "seeing")
    quantizable.save_text(folder / "plain")
    return {SEEING: folder / "seeing", PLAIN: folder / "plain"}


@pytest.fixture
def hub(saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    known = FakeHub(dict(saved))
    with serving(known, tmp_path / "cache"):
        yield known


def test_a_model_of_the_hub_gives_what_its_folder_gives(
    hub: FakeHub, saved: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    done = quantize_model(SEEING, tmp_path / "out", replace(OPTIONS, calib=data, revision="v1"))
    assert done.bundle is not None
    manifest = done.bundle.manifest
    assert manifest.name == "tiny-llava" == done.report["model"]
    assert (manifest.source["model"], manifest.source["revision"]) == (SEEING, COMMIT)
    assert done.report["origin"] == {"model": SEEING, "revision": COMMIT}
    quantize_model(saved[SEEING], tmp_path / "folder", replace(OPTIONS, calib=data))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "folder")
    hub.models.clear()  # from now on the cache has to do
    again = quantize_model(SEEING, tmp_path / "out", replace(RTN, offline=True, revision=COMMIT))
    assert again.bundle is not None
    assert again.bundle.manifest.source["revision"] == COMMIT


def test_a_bundle_of_a_folder_takes_the_same_model_of_the_hub(
    hub: FakeHub, saved: dict[str, Path], tmp_path: Path
) -> None:
    quantize_model(saved[SEEING], tmp_path / "out", RTN)
    done = quantize_model(SEEING, tmp_path / "out", RTN)
    assert done.bundle is not None
    assert done.bundle.manifest.source["model"] == SEEING
    hub.models.clear()
    assert verify_bundle(tmp_path / "out", SEEING, offline=True, threads=1).ok


def test_a_plain_language_model_of_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    done = quantize_model(PLAIN, tmp_path / "out", RTN)
    assert done.bundle is None
    assert (done.report["model"], done.report["origin"]) == ("tiny-llama", {"model": PLAIN, "revision": COMMIT})
    assert {"model.safetensors", "tokenizer.json"} <= {*hub.served}
    with pytest.raises(BadInput, match="holds another model, tiny-llama; tiny-llava cannot"):
        quantize_model(SEEING, tmp_path / "out", RTN)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "is already quantized"),
        ({"model_type": "mamba"}, "'mamba' is not supported"),
    ],
    ids=["quantized", "unknown"],
)
def test_what_cannot_be_used_is_refused_before_its_weights(
    fields: dict[str, object], message: str, hub: FakeHub, tmp_path: Path
) -> None:
    config = json.loads((hub.models[PLAIN] / "config.json").read_text()) | fields
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes(b"large")
    hub.models[PLAIN] = other
    with pytest.raises(BadInput, match=message):
        quantize_model(PLAIN, tmp_path / "out", RTN)
    assert "model.safetensors" not in hub.served
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("hub")
def test_offline_without_the_model_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not in the local cache"):
        quantize_model(SEEING, tmp_path / "out", replace(RTN, offline=True))
    assert not (tmp_path / "out").exists()


def test_a_folder_has_no_revision(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--revision is for models of the hub"):
        quantize_model(saved[PLAIN], tmp_path / "out", replace(RTN, revision="main"))
