"""Models as folders and repositories: what is written is read again, and what fails is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
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


class FakeHub(ModuleType):
    """huggingface_hub with one repository, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder = folder
        self.calls: list[str] = []
        self.HfApi = lambda: SimpleNamespace(
            create_repo=self.create_repo, upload_folder=self.upload_folder
        )

    def hf_hub_download(self, repository: str, name: str) -> str:
        if not (self.folder / name).is_file():
            raise OSError("404 Not Found")
        self.calls.append(f"download {repository} {name}")
        return str(self.folder / name)

    def create_repo(self, repository: str, **options: Any) -> None:
        self.calls.append(f"create {repository} {options}")

    def upload_folder(self, repo_id: str, folder_path: str) -> None:
        self.folder.mkdir()
        for path in Path(folder_path).iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "repository")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def test_what_is_pushed_to_the_hub_is_what_comes_back(fake_hub: FakeHub) -> None:
    model = small(21)
    address = model.push_to_hub("me/voc", ABOUT, private=True)
    assert address == "https://huggingface.co/me/voc"
    opened = hub.load_pretrained("me/voc")
    assert_same_state(opened.model, model)
    assert opened.metadata["class_names"] == list(VOC)
    assert fake_hub.calls == [
        "create me/voc {'private': True, 'exist_ok': True}",
        "download me/voc model.safetensors",
    ]


def test_a_repository_that_is_not_there_is_named_in_one_line(fake_hub: FakeHub) -> None:
    message = refused(hub.load_pretrained, "me/none")
    assert message.startswith("me/none: no such file, and model.safetensors of that repository")
    assert "404 Not Found" in message


def test_offline_no_repository_is_asked_for(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPLAB_OFFLINE", "1")
    assert "DEEPLAB_OFFLINE forbids" in refused(hub.load_pretrained, "me/voc")
    assert not fake_hub.calls


def test_without_huggingface_hub_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refused(hub.load_pretrained, "me/voc")
    assert "pip install 'deeplab-triton[hub]'" in message
    assert "no such weights file" in refused(hub.load_pretrained, "some/deeper/path.pth")
