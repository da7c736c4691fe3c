"""Models as folders, and as repositories of the Hugging Face Hub, which are such folders.

model.safetensors   tensors and what is known about them: a file of `save_weights`
config.json         the same facts, and the preprocessing, for other programs and the Hub
README.md           a model card, written where there is none yet
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from deeplab.data import outputs
from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.weights import download
from deeplab.weights.file import StrPath, read_metadata, save_weights
from deeplab.weights.recognition import Opened, load_checkpoint

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
FILES = (".safetensors", ".pth", ".caffemodel")  # what ends so is meant as a path


def load_pretrained(source: StrPath) -> Opened:
    """The model of a name, a file, a folder of `save_pretrained`, or a repository "owner/name".

    What lies on this machine comes before a repository. With DEEPLAB_OFFLINE=1 a repository is
    taken from huggingface_hub's cache alone. Raises InputError as `load_checkpoint` does, and where
    the Hub cannot be reached or huggingface_hub is not installed.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_dir():
        return load_checkpoint(path / WEIGHTS)
    on_hub = REPOSITORY.fullmatch(name) and path.suffix not in FILES
    if path.exists() or not on_hub:  # no name of the registry has a slash
        return load_checkpoint(source)
    return load_checkpoint(_downloaded(name))


def save_pretrained(
    model: DeepLab, folder: StrPath, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the model as a folder that `load_pretrained` reads; each file whole or not at all.

    metadata: as in `save_weights`, such as `class_names`, `palette` and `crf`.

    Raises InputError as `save_weights` does, and where the folder cannot be written.
    """
    _save(model, Path(folder), metadata, "owner/name")


def _save(
    model: DeepLab, folder: Path, metadata: Mapping[str, Any] | None, repository: str
) -> None:
    outputs.check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS, metadata)
    facts = read_metadata(folder / WEIGHTS) | {"preprocessing": model.preprocessing.described()}
    outputs.write_text(folder / CONFIG, json.dumps(facts, indent=2) + "\n")
    if not (folder / CARD).exists():
        outputs.write_text(folder / CARD, model_card(facts, repository))


def push_to_hub(
    model: DeepLab,
    repository: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    private: bool = False,
) -> str:
    """Upload the folder of `save_pretrained` to "owner/name", made if need be; its address.

    Raises InputError where huggingface_hub is not installed, nobody is logged in, or the Hub
    refuses or cannot be reached.
    """
    hub = _huggingface_hub(repository)
    with tempfile.TemporaryDirectory() as folder:
        _save(model, Path(folder), metadata, repository)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder)
        except _errors() as error:
            raise InputError(
                f"{repository}: cannot be uploaded ({_line(error)}); check the network, and log in "
                "with `hf auth login`"
            ) from error
    return f"https://huggingface.co/{repository}"


def model_card(facts: Mapping[str, Any], repository: str) -> str:
    """README.md of a repository: the tags that the Hub reads, what the model is, how to use it."""
    names = facts.get("class_names")
    classes = f"{facts['num_classes']} classes" + (f": {', '.join(names)}" if names else "")
    bands = facts.get("options", {}).get("in_channels", 3)
    answer = ".sigmoid() >= 0.5" if facts.get("options", {}).get("multilabel") else ".argmax(1)"
    taken = "RGB, uint8 [H, W, 3]" if bands == 3 else f"[H, W, {bands}]"
    return f"""---
library_name: deeplab-triton
pipeline_tag: image-segmentation
tags:
- semantic-segmentation
- {facts["model"]}
---

# {facts["model"]}

Semantic segmentation into {classes}.

```python
from deeplab.model import DeepLab

model = DeepLab.from_pretrained("{repository}")
labels = model(model.preprocess(image)){answer}  # image: {taken}
```

What the weights were trained on, and how accurate they are, is for their author to say here.
"""


def _downloaded(repository: str) -> Path:
    hub, offline = _huggingface_hub(repository), download.offline()
    try:
        return Path(hub.hf_hub_download(repository, WEIGHTS, local_files_only=offline))
    except _errors() as error:
        where = "the Hugging Face Hub"
        if offline:
            where = f"the cache of {where}, and {download.OFFLINE} forbids to download it"
        raise InputError(
            f"{repository}: no such file, and {WEIGHTS} of that repository cannot be had from "
            f"{where} ({_line(error)}); check the name and the network"
        ) from error


def _errors() -> tuple[type[BaseException], ...]:
    """What calls of huggingface_hub raise where a person can mend it.

    The errors of a connection are those of the package that it rests on, requests or httpx by its
    version. The base of its own HTTP errors is theirs too.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, HfHubHTTPError.__bases__[0]


def _line(error: BaseException) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _huggingface_hub(repository: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{repository}: no such file; to take it for a repository of the Hugging Face Hub "
            "needs huggingface_hub: pip install 'deeplab-triton[hub]'"
        ) from error
    return huggingface_hub
