"""Segment a folder of pictures with Ray, on this machine or a cluster: label PNGs and Parquet.

python ray_segment.py FOLDER OUT [WEIGHTS]      # pip install 'deeplab-triton[ray]'

OUT/NAME_labels.png are the files of `deeplab segment FOLDER --out OUT`; OUT/rows.parquet has their
bytes, with size, shares of the classes and errors, a row a picture. All machines have to see FOLDER
and OUT.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import ray

from deeplab.data.images import find_images
from deeplab.data.outputs import output_names, write_bytes
from deeplab.errors import InputError
from deeplab.predict import BatchSegmenter
from deeplab.weights import load_checkpoint


def main(folder: str, out: str, weights: str | None = None) -> None:
    files = [file.absolute() for file in find_images([folder])]
    name_of = dict(zip(map(str, files), output_names(files), strict=True))
    place = Path(out).absolute()
    table = place / "rows.parquet"
    if weights is not None:
        load_checkpoint(weights)  # says what is wrong with them here, once, and in one line
        if Path(weights).exists():  # else it is a name
            weights = str(Path(weights).absolute())

    def write(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for path, labels in zip(rows["path"], rows["labels"], strict=True):
            if labels:
                write_bytes(place / f"{name_of[path]}_labels.png", labels)
        return rows

    # A worker computes in one thread, reading and writing take little. So every core has a worker,
    # also where there is one core: with whole ones Ray would wait for a second for ever.
    ray.init()
    cores = int(ray.cluster_resources()["CPU"])
    workers = ray.data.ActorPoolStrategy(min_size=1, initial_size=cores)
    little = {"num_cpus": 0.05}
    pictures = ray.data.read_binary_files([*name_of], include_paths=True, **little)
    segmented = pictures.map_batches(
        BatchSegmenter, fn_constructor_args=[weights], batch_size=4, compute=workers, num_cpus=0.9
    )
    written = segmented.map_batches(write, **little)
    written.write_parquet(str(table), mode="overwrite", ray_remote_args=little)

    errors = pyarrow.parquet.read_table(table, columns=["error"])["error"].to_pylist()
    broken = sorted(filter(None, errors))
    for error in broken:
        print(f"Left out: {error}", file=sys.stderr)
    print(f"{len(errors) - len(broken)} of {len(errors)} pictures segmented -> {place}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"Error: {error}")
