"""All families, and how many cases each has at full size."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from campaign import runner
from campaign.runner import Tally


@dataclass(frozen=True)
class Part:
    """A family at full size: how many cases, and which module makes them."""

    module: str
    count: int
    run: str = ""  # a function of that module; otherwise its FAMILY, case by case


PARTS = {
    # inputs and files through the command line: 10,000
    "pictures": Part("pictures", 1400),
    "labels": Part("labels", 1500),
    "settings": Part("settings", 1100),
    "checkpoints": Part("checkpoints", 1200),
    "class_files": Part("class_files", 1300),
    "arrays": Part("arrays", 1500),
    "options": Part("options", 1500),
    "annotations": Part("annotations", 500),
    # the other two packages, from Python
    "crf": Part("dense_crf", 1000),
    "kernels": Part("filters", 1000),
    # the world around
    "kill": Part("kill", 100, "run_kills"),
    "disk": Part("disk", 200, "run_disk"),
    "writers": Part("writers", 30, "run_writers"),
    "concurrency": Part("concurrency", 200, "run_concurrency"),
}
INPUTS = (
    *("pictures", "labels", "settings", "checkpoints", "class_files", "arrays", "options"),
    "annotations",
)


def run(
    name: str, seed: int, count: int, only: int | None = None, keep: Path | None = None
) -> Tally:
    """Run a family in this process."""
    part = PARTS[name]
    module = importlib.import_module(f"campaign.{part.module}")
    if part.run:
        tally: Tally = getattr(module, part.run)(seed, count)
        return tally
    return runner.run_family(module.FAMILY, seed, count, only, keep)
