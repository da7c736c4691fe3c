"""Models as folders and repositories: what is written is read again, and what fails is said."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights_files import assert_same_state, refused, small

from deeplab.data.datasets.classes import VOC, VOC_PALETTE
from deeplab.model import DeepLab, build
from deeplab.weights import hub

ABOUT = {"class_names": list(VOC), "palette": VOC_PALETTE.tolist(), "crf": {"iterations": 3}}


def test_a_saved_folder_gives_the_model_and_what_is_known_of_it(tmp_path: Path) -> None:
    model = build("deeplab_v2_small", 21, scales=(1.0, 0.5), style="torchvision").eval()
    model.save_pretrained(tmp_path / "new", ABOUT)
    opened = hub.load_pretrained(tmp_path / "new")
    assert_same_state(opened.model, model)
    assert opened.model.config == model.config
    assert {name: opened.metadata[name] for name in ABOUT} == ABOUT
    assert_same_state(DeepLab.from_pretrained(tmp_path / "new" / hub.WEIGHTS), model)


def test_config_says_how_to_preprocess_and_the_card_how_to_use_it(tmp_path: Path) -> None:
    model = small(21)
    model.save_pretrained(tmp_path, ABOUT)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == "deeplab_v2_small"
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    how = config["preprocessing"]
    channels = ["RGB".index(letter) for letter in how["channels"]]
    x = (image[..., channels] * how["scale"] - how["mean"]) / how["deviation"]
    found = torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None]
    torch.testing.assert_close(found, model.preprocess(image))
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: deeplab-triton\n")
    assert "21 classes: background, aeroplane" in card


def test_a_card_that_was_written_by_hand_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    small().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_name_scenes_is_taken_as_everywhere() -> None:
    assert DeepLab.from_pretrained("scenes").config["model"] == "deeplab_v2_small"


@dataclass
class Hub:
    """The Hugging Face Hub's answers for one repository, and what it was asked for."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a request."""
        if path == "/api/repos/create":
            self.created = json.loads(content)
            return 200, json.dumps({"url": f"{self.address}/me/voc"}).encode()
        if path == "/api/validate-yaml":
            return 200, json.dumps({"errors": [], "warnings": []}).encode()
        if "/preupload/" in path:
            of_file = {"uploadMode": "regular", "shouldIgnore": False}
            named = [{"path": each["path"]} | of_file for each in json.loads(content)["files"]]
            return 200, json.dumps({"files": named}).encode()
        if "/commit/" in path:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    name, text = line["value"]["path"], line["value"]["content"]
                    self.files[name] = base64.b64decode(text)
            about = {"commitUrl": f"{self.address}/me/voc/commit/{COMMIT}", "commitOid": COMMIT}
            return 200, json.dumps(about).encode()
        name = path.removeprefix("/me/voc/resolve/main/")
        return (200, self.files[name]) if name in self.files else (404, b"")


COMMIT = "0123456789" * 4


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """huggingface_hub's own Hub, in this process and with an empty cache."""
    reason = "huggingface_hub is not installed"
    constants = pytest.importorskip("huggingface_hub.constants", reason=reason)
    known = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.asked.append(f"{self.command} {self.path}")
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = known.answer(self.path, content)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        known.address = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", known.address)
        template = f"{known.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield known
        listening.shutdown()
        thread.join()


def test_what_is_pushed_to_the_hub_is_what_comes_back(on_hub: Hub) -> None:
    from huggingface_hub import ModelCard

    model = small(21)
    address = model.push_to_hub("me/voc", ABOUT, private=True)
    assert address == "https://huggingface.co/me/voc"
    assert on_hub.created["visibility"] == "private"
    assert set(on_hub.files) == {hub.WEIGHTS, hub.CONFIG, hub.CARD}
    card = ModelCard(on_hub.files[hub.CARD].decode())
    assert 'from_pretrained("me/voc")' in card.text
    assert card.data.tags == ["semantic-segmentation", "deeplab_v2_small"]
    assert card.data.library_name == "deeplab-triton"
    opened = hub.load_pretrained("me/voc")
    assert_same_state(opened.model, model)
    assert opened.metadata["class_names"] == list(VOC)


def test_offline_a_repository_comes_from_the_cache_or_not_at_all(
    on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(21)
    model.push_to_hub("me/voc", ABOUT)
    monkeypatch.setenv("DEEPLAB_OFFLINE", "1")
    on_hub.asked.clear()
    message = refused(hub.load_pretrained, "me/voc")
    assert "the cache of the Hugging Face Hub, and DEEPLAB_OFFLINE forbids" in message
    assert not on_hub.asked
    monkeypatch.delenv("DEEPLAB_OFFLINE")
    hub.load_pretrained("me/voc")
    monkeypatch.setenv("DEEPLAB_OFFLINE", "1")
    on_hub.asked.clear()
    assert_same_state(DeepLab.from_pretrained("me/voc"), model)
    assert not on_hub.asked


def test_a_repository_that_is_not_there_is_named_in_one_line(on_hub: Hub) -> None:
    message = refused(hub.load_pretrained, "me/none")
    assert message.startswith("me/none: no such file, and model.safetensors of that repository")
    assert "404" in message
    assert message.endswith("check the name and the network")
    assert "\n" not in message


def test_an_upload_without_a_network_is_refused_in_one_line(
    on_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refused(lambda: small().push_to_hub("me/voc"))
    assert message.startswith("me/voc: cannot be uploaded (")
    assert message.endswith("check the network, and log in with `hf auth login`")
    assert "\n" not in message


def test_a_path_to_weights_that_are_not_there_is_no_repository() -> None:
    assert "no such weights file" in refused(hub.load_pretrained, "runs/voc.safetensors")


def test_without_huggingface_hub_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused(hub.load_pretrained, "me/voc")
    assert "pip install 'deeplab-triton[hub]'" in message
    assert "no such weights file" in refused(hub.load_pretrained, "some/deeper/path.pth")
