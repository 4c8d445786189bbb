"""A Hugging Face hub on this machine, in the few answers that its own client asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MAIN = {"main", "v1", COMMIT}


@dataclass
class FakeHub:
    """models: id -> folder.  gated: ids whose files are not given out.  served: names of the files that were."""

    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    served: list[str] = field(default_factory=list)
    asked: int = 0

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        self.asked += 1
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _api(self, model: str, rest: list[str]) -> tuple[int, dict[str, str], bytes]:
        if model not in self.models:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if rest and rest[1] not in MAIN:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = sorted(path for path in self.models[model].rglob("*") if path.is_file())
        names = {path.relative_to(self.models[model]).as_posix(): path for path in files}
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _oid(p)} for n, p in names.items()]
            return 200, {}, json.dumps(tree).encode()
        about = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names], "tags": []}
        return 200, {}, json.dumps(about).encode()

    def _file(self, model: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        if model in self.gated:
            return 401, {"X-Error-Code": "GatedRepo"}, b""
        path = self.models[model] / name
        if revision not in MAIN or not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        self.served.append(name)
        return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(path)}"'}, path.read_bytes()


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: FakeHub, cache: Path) -> Iterator[None]:
    """While it lasts, huggingface_hub speaks to `hub` and keeps files in `cache`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._reply(body=False)

        def do_GET(self) -> None:
            self._reply(body=True)

        def _reply(self, *, body: bool) -> None:
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        with speaking_to(f"http://127.0.0.1:{server.server_port}", cache):
            yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def speaking_to(address: str, cache: Path) -> Iterator[None]:
    """huggingface_hub with another address of the hub; a test that forgets this has no network and fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield
