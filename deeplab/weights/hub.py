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
from deeplab.weights import download, registry
from deeplab.weights.file import StrPath, read_metadata, save_weights
from deeplab.weights.recognition import Opened, load_checkpoint

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def load_pretrained(source: StrPath) -> Opened:
    """The model of a name, a file, a folder of `save_pretrained`, or a repository "owner/name".

    What lies on this machine comes before a repository. Raises InputError as `load_checkpoint`
    does, and where the Hub cannot be reached or huggingface_hub is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return load_checkpoint(path / WEIGHTS)
    known = os.fspath(source) in (*registry.table(), registry.SCENES)
    if known or path.exists() or not REPOSITORY.fullmatch(os.fspath(source)):
        return load_checkpoint(source)
    return load_checkpoint(_downloaded(os.fspath(source)))


def save_pretrained(
    model: DeepLab, folder: StrPath, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the model as a folder that `load_pretrained` reads; each file whole or not at all.

    metadata: as in `save_weights`, such as `class_names`, `palette` and `crf`.

    Raises InputError as `save_weights` does, and where the folder cannot be written.
    """
    folder = Path(folder)
    outputs.check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / WEIGHTS, metadata)
    facts = read_metadata(folder / WEIGHTS) | {"preprocessing": model.preprocessing.described()}
    outputs.write_text(folder / CONFIG, json.dumps(facts, indent=2) + "\n")
    if not (folder / CARD).exists():
        outputs.write_text(folder / CARD, model_card(facts))


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
        save_pretrained(model, folder, metadata)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder)
        except (OSError, ValueError) as error:  # requests' errors are OSError
            raise InputError(
                f"{repository}: cannot be uploaded ({error!s:.200}); log in with `hf auth login`"
            ) from error
    return f"https://huggingface.co/{repository}"


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md of a repository: the tags that the Hub reads, what the model is, how to use it."""
    names = facts.get("class_names")
    classes = f"{facts['num_classes']} classes" + (f": {', '.join(names)}" if names else "")
    bands = facts.get("options", {}).get("in_channels", 3)
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

model = DeepLab.from_pretrained("owner/name")
labels = model(model.preprocess(image)).argmax(1)  # image: {taken}
```

What the weights were trained on, and how accurate they are, is for their author to say here.
"""


def _downloaded(repository: str) -> Path:
    if download.offline():
        raise InputError(
            f"{repository}: no such file, and {download.OFFLINE} forbids to download the repository"
        )
    hub = _huggingface_hub(repository)
    try:
        return Path(hub.hf_hub_download(repository, WEIGHTS))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{repository}: no such file, and {WEIGHTS} of that repository cannot be had from the "
            f"Hugging Face Hub ({error!s:.200}); check the name and the network"
        ) from error


def _huggingface_hub(repository: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{repository}: no such file; to take it for a repository of the Hugging Face Hub "
            "needs huggingface_hub: pip install 'deeplab-triton[hub]'"
        ) from error
    return huggingface_hub
