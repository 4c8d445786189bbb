"""Models of the hub, through huggingface_hub's own client and a hub on this machine: what is loaded, and every refusal."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import exportable
from tests.fake_hub import COMMIT, FakeHub, serving, speaking_to
from vlm_edge.core.bundle import open_bundle
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.exporting import source
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model
from vlm_edge.pipeline.exporting.hub import fetch, is_id

ID = "made-here/tiny-llava"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in shards, beside files that nobody needs."""
    folder = tmp_path_factory.mktemp("saved")
    exportable.save("llava", folder, max_shard_size="100KB")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "code.py", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    known = FakeHub({ID: saved})
    with serving(known, tmp_path / "cache"):
        yield known


def refused(message: str, **options: object) -> str:
    """Fetching is refused with this message; returns what to do about it."""
    with pytest.raises(BadInput, match=message) as caught:
        fetch(ID, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message
    return caught.value.remedy


def test_only_what_is_needed_is_loaded_and_opens(hub: FakeHub, saved: Path):
    described = source.describe(ID, revision="v1")
    assert described.origin == {"model": ID, "revision": COMMIT}
    assert described.name == "tiny-llava"
    assert described.hashes == source.describe(saved).hashes
    shards = {path.name for path in saved.glob("model-*.safetensors")}
    small = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    assert len(shards) > 2
    assert {*hub.served} == shards | small | {"model.safetensors.index.json"}
    assert max(map(hub.served.index, small)) < min(map(hub.served.index, shards))


def test_a_bundle_remembers_where_its_model_came_from(hub: FakeHub, tmp_path: Path):
    with exportable.exporting_once():
        export_model(ID, tmp_path / "out", ExportOptions(revision="v1", threads=1))
    manifest = open_bundle(tmp_path / "out").manifest
    assert manifest.name == "tiny-llava"
    assert (manifest.source["model"], manifest.source["revision"]) == (ID, COMMIT)
    hub.models.clear()  # the commit that the bundle names is in the cache
    found = verify_bundle(tmp_path / "out", ID, offline=True, threads=1)
    assert found.ok
    assert "torch vision/cpu cosine" in {check.name for check in found.checks}
    # the same files from a folder are the same model
    with exportable.exporting_once():
        export_model(hub_folder(tmp_path), tmp_path / "out", ExportOptions(threads=1))
    assert open_bundle(tmp_path / "out").manifest.source["revision"] == COMMIT


def hub_folder(tmp_path: Path) -> Path:
    return next((tmp_path / "cache").glob("models--*/snapshots/*"))


@pytest.mark.usefixtures("hub")
def test_what_the_cache_holds_needs_no_network(tmp_path: Path):
    refused("not in the local cache", offline=True)
    first = fetch(ID)
    with speaking_to("http://127.0.0.1:9", tmp_path / "cache"):
        assert fetch(ID, offline=True) == first
        assert fetch(ID, revision=COMMIT, offline=True) == first
    next(first.root.glob("model-*.safetensors")).unlink()
    assert "leave out --offline" in refused("not in the local cache", offline=True)


def test_offline_by_the_environment(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from HF_HUB_OFFLINE at import
    assert "HF_HUB_OFFLINE" in refused("the network is not to be used")
    assert hub.asked == 0


def test_a_model_that_is_not_there(hub: FakeHub):
    hub.models.clear()
    assert "check the name" in refused("neither a folder made-here/tiny-llava nor a model")


@pytest.mark.usefixtures("hub")
def test_a_revision_that_is_not_there():
    assert ID in refused("has no revision v9", revision="v9")


def test_a_gated_model(hub: FakeHub):
    hub.gated.add(ID)
    assert f"huggingface.co/{ID}, then: hf auth login" in refused("accepted its terms")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as closed:  # bound and not listening: whoever calls is refused
        closed.bind(("127.0.0.1", 0))
        with speaking_to(f"http://127.0.0.1:{closed.getsockname()[1]}", tmp_path / "cache"):
            assert "check the network" in refused("the hub cannot be reached")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"auto_map": {"AutoModel": "code.Model"}}, "code of its own"), ({"model_type": "llave"}, "'llave' is not supported")],
    ids=["code", "type"],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_refused_before_its_weights(
    fields: dict[str, object], message: str, hub: FakeHub, tmp_path: Path
):
    config = json.loads((hub.models[ID] / "config.json").read_text()) | fields
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config))
    (other / "model.safetensors").write_bytes(b"large")
    hub.models[ID] = other
    refused(message)
    assert hub.served.count("model.safetensors") == 0


@pytest.mark.parametrize("index", [None, "pytorch_model.bin", "pytorch_model-*"])
def test_pickles_are_never_loaded(index: str | None, hub: FakeHub, saved: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((saved / "config.json").read_bytes())
    (other / "pytorch_model.bin").write_bytes(b"pickle")
    if index:
        (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": index}}))
    hub.models[ID] = other
    refused("pickle" if index != "pytorch_model-*" else "has no model.safetensors")
    assert "pytorch_model.bin" not in hub.served


def test_which_names_are_meant_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b").mkdir(parents=True)
    assert is_id("llava-hf/llava-1.5-7b-hf")
    for name in ("a/b", "./c/d", "../c", "/c/d", "c", "c/d/e", "c/d/", "c d/e", ""):
        assert not is_id(name), name


def test_a_folder_has_no_revision(saved: Path):
    with pytest.raises(BadInput, match="--revision is for models of the hub"):
        source.describe(saved, revision="main")
