"""The hub: a network pushed to a local stand-in comes back the same, with a card about it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import alexnet as package
from alexnet import hub
from alexnet.errors import UserError
from alexnet.model import build
from alexnet.weights import load, save_model
from fabricate import alexnet, refusal
from test_weights import card_of

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789" * 4


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub's protocol as creating, committing and fetching small files takes."""

    files: dict[str, bytes]

    def log_message(self, *_: Any) -> None: ...

    def _json(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self._json({"url": f"https://huggingface.co/me/{json.loads(body)['name']}"})
        elif self.path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---")
            self._json({"errors": [], "warnings": []})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            found = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            self._json({"files": found})
        elif self.path.endswith("/commit/main"):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.files[entry["value"]["path"]] = content
            self._json(
                {
                    "commitUrl": "https://huggingface.co/me/net/commit/0",
                    "commitOid": COMMIT,
                    "success": True,
                }
            )
        else:
            self._json({"error": f"no {self.path}"}, 404)

    def do_HEAD(self) -> None:
        self._resolve(body=False)

    def do_GET(self) -> None:
        self._resolve(body=True)

    def _resolve(self, *, body: bool) -> None:
        found = re.fullmatch(r"/me/net/resolve/[^/]+/(.+)", self.path)
        if found is None or found[1] not in self.files:
            self._json({"error": "not found"}, 404)
            return
        data = self.files[found[1]]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setenv("HF_TOKEN", "nobody")
    StandIn.files = {}
    running = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    origin = {"fine_tuned_from": "old/model.safetensors", "sha256": "ab" * 32, "dataset": "birds"}
    model = build("small", 3, torch.Generator().manual_seed(0))
    save_model(folder / "model.safetensors", model, card_of(origin=origin))
    evaluation = {
        "split": "val",
        "views": 10,
        "top1_error": 0.125,
        "top5_error": 0.01,
        "images": 800,
    }
    summary = {"recipe": "finetune", "seed": 3, "steps": 500, "evaluations": [evaluation]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_network_comes_back_from_the_hub_as_it_was_pushed(server: str, run: Path) -> None:
    page = hub.push(run, "me/net", endpoint=server)
    assert "me/net" in page
    assert StandIn.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    found, pushed = hub.from_hub("me/net", endpoint=server), load(run)
    for name, tensor in pushed.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert found.card.class_names == pushed.card.class_names
    assert package.from_hub is hub.from_hub


def test_the_card_on_the_hub_is_written_from_the_run(server: str, run: Path) -> None:
    hub.push(run, "me/net", endpoint=server)
    text = StandIn.files["README.md"].decode()
    assert text.startswith("---\nlibrary_name: ")
    assert "| val | 10 | 12.50% | 1.00% | 800 |" in text
    assert "network `small`, trained on pets: 3 classes" in text
    assert "Fine-tuned from `model.safetensors` (sha256 `abab" in text
    assert 'alexnet.from_hub("me/net")' in text
    digest = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    assert digest in text


def test_what_fails_on_the_hub_is_a_line(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"cannot fetch model.safetensors of me/other"):
        hub.from_hub("me/other", endpoint=server)
    with pytest.raises(UserError, match="it is OWNER/NAME"):
        hub.push(run, "net", endpoint=server)
    with pytest.raises(UserError, match="cannot push to me/net"):
        hub.push(run, "me/net", endpoint="http://127.0.0.1:9")
    assert "it is OWNER/NAME" in refusal("export", run, "hf:net")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "pip install 'alexnet[hub]'" in refusal("export", run, "hf:me/net")


def test_the_command_pushes_and_fetches(
    server: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server)
    finished = alexnet("export", run, "hf:me/net")
    assert finished.code == 0, finished
    target = tmp_path / "fetched.safetensors"
    finished = alexnet("convert", "hf:me/net", target)
    assert finished.code == 0, finished
    assert target.read_bytes() == (run / "model.safetensors").read_bytes()
