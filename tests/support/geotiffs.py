"""GeoTIFFs in tests: written with rasterio, which a test skips without."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NORTH_UP = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)  # metres of UTM
PLACE = {"crs": "EPSG:32633", "transform": NORTH_UP}


def needs_rasterio() -> Any:
    """rasterio with its modules, or the test is skipped."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    for module in ("control", "enums", "rpc", "shutil", "transform", "warp"):
        importlib.import_module(f"rasterio.{module}")
    return rasterio


def geotiff(
    path: Path,
    values: np.ndarray,
    colours: tuple[str, ...] = (),
    mask: np.ndarray | None = None,
    palette: dict[int, tuple[int, ...]] | None = None,
    tags: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """A TIFF of values `[H, W, bands]`, at PLACE unless the options say another one.

    colours: of the bands, as GDAL calls them. mask: bool `[H, W]`, stored as a mask of the file.
    """
    rasterio = needs_rasterio()
    path.parent.mkdir(parents=True, exist_ok=True)
    options = options if {"crs", "transform", "gcps", "rpcs"} & set(options) else PLACE | options
    if options.get("transform"):
        options = options | {"transform": rasterio.Affine(*options["transform"])}
    height, width, count = values.shape
    size = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **size, **options) as file,
    ):
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[each] for each in colours]
        file.update_tags(**(tags or {}))
        file.write(np.moveaxis(values, 2, 0))
        if palette is not None:
            file.write_colormap(1, palette)
        if mask is not None:
            file.write_mask(mask)
    return path


def damage(path: Path, block: int) -> None:
    """Overwrite a block of a tiled file, so that it cannot be decoded."""
    with Image.open(path) as picture:
        start, size = (picture.tag_v2[tag][block] for tag in (324, 325))  # TileOffsets, -ByteCounts
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)


def noise(height: int, width: int, bands: int = 3, dtype: str = "uint8", seed: int = 0) -> Any:
    """Values of all of an integer dtype's range, or of 0 to 1000."""
    random = np.random.default_rng(seed)
    high = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1000
    return random.integers(0, high, (height, width, bands), endpoint=True).astype(dtype)
