"""Results as Cloud Optimized GeoTIFFs, of the size and place of a scene.

    with cog(Path("labels.tif"), scene, "uint8", UNOBSERVED, names, palette) as maps:
        maps.write(labels, 1, window=((0, 512), (0, 512)))

Source: https://gdal.org/en/stable/drivers/raster/cog.html
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from deeplab.data.geotiff import Scene, environment, opened, require_rasterio
from deeplab.data.outputs import as_output_error, write_text
from deeplab.whole_file import whole_file

BLOCK = 512  # pixels a side


@contextmanager
def cog(
    path: Path,
    scene: Scene,
    dtype: str,
    nodata: float,
    names: Sequence[str],
    palette: np.ndarray | None = None,
) -> Iterator[Any]:
    """A dataset of rasterio to fill, of the scene's size and place; then it is the COG at `path`.

    It grows in a folder beside `path`, .NAME.work, as a plain TIFF, and becomes a Cloud Optimized
    GeoTIFF (deflated, overviews inside) when the block ends, and not if it raises. What a killed
    process leaves the next one writes over. Files that GDAL keeps beside the TIFF that was there
    before (statistics, overviews, a mask) go with it.

    names: of the classes; they are a tag too, `class_names`, a list in JSON.
    palette: uint8 `[256, 3]`, for a label map: one band whose values are class indices, with the
        names as its categories, for which GDAL has a place in NAME.aux.xml. None makes a band for
        each class, with its name as description.

    Overviews of floating point values are means, others take the nearest pixel.

    Raises OutputError where it cannot be written.
    """
    rasterio = require_rasterio(path)
    with environment(rasterio), as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file, _folder(path.with_name(f".{path.name}.work")) as work:
            plain, final = work / "plain.tif", work / "cog.tif"
            count = len(names) if palette is None else 1
            kind = {"count": count, "dtype": dtype, "nodata": nodata, "BIGTIFF": "YES"}
            size = {"height": scene.height, "width": scene.width}
            blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band"}
            options = kind | size | blocks | scene.place()
            with opened(rasterio, plain, "w+", **options) as dataset:
                named = json.dumps(list(names), ensure_ascii=False)
                dataset.update_tags(class_names=named, **scene.tags())
                if palette is not None:
                    colours = palette[: len(names)].tolist()
                    dataset.write_colormap(1, {i: (*c, 255) for i, c in enumerate(colours)})
                else:
                    for band, name in enumerate(names, 1):
                        dataset.set_band_description(band, name)
                yield dataset
            _copy_as_cog(rasterio, plain, final, floating=dtype == "float32")
            for beside in (".aux.xml", ".ovr", ".msk"):
                path.with_name(path.name + beside).unlink(missing_ok=True)
            if palette is not None:
                write_text(path.with_name(f"{path.name}.aux.xml"), _categories(names))
            with final.open("rb") as made:
                shutil.copyfileobj(made, file, 2**20)


def _copy_as_cog(rasterio: Any, source: Path, target: Path, floating: bool) -> None:
    try:
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            compress="DEFLATE",
            predictor="YES" if floating else "NO",
            blocksize=BLOCK,
            overview_resampling="average" if floating else "nearest",
            bigtiff="IF_SAFER",
        )
    except Exception as error:  # GDAL's own, which rasterio has no public name for
        raise OSError(str(error)) from error


def _categories(names: Sequence[str]) -> str:
    """The names as GDAL's own file of what a TIFF has no place for."""
    listed = "\n".join(f"      <Category>{escape(name)}</Category>" for name in names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{listed}\n    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    )


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """An empty folder while the block lasts."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
