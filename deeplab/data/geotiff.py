"""GeoTIFFs as scenes: pictures with a place on Earth, read window by window.

    with Scene("scene.tif", fill=network.preprocessing.mean_colour()) as scene:
        values, observed = scene.read(slice(0, 512), slice(0, 512))

A scene is a TIFF with a coordinate reference system, a transform, ground control points or
rational polynomials. Values are those in the file: neither its scale and offset nor a stretch is
applied. Ground is unobserved where all bands that are read are nodata, NaN or Inf, and where alpha
or a mask is 0. There every band reads as `fill`, the mean of what the network was trained on, which
its preprocessing makes zero: the same that it sees beyond the edge of a picture. Where only some
bands are nodata, those alone read so; of 8 bits they stay as they are, since there 0 and 255 are
dark and light too.

rasterio reads them, an optional package: pip install 'deeplab-triton[geo]'. Only GDAL's driver of
TIFF is used, so that no file can lead to others by its content.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from deeplab.data.conversions import BANDS, DEEP, Conversion
from deeplab.data.images import check_file, check_size, near_zero, settings
from deeplab.errors import InputError

TIFF = (".tif", ".tiff")
UNOBSERVED = 255  # in label maps
CLASSES = 255  # that a label map can have beside it
DTYPES = ("uint8", "uint16", "float32")  # that networks take, as of `deeplab.data.bands`
WIDENED = ("int8", "int16", "float16", "float64")  # read as float32
DEEPEST = 65535  # of 16 bits
PIXELS = 2**22  # of a window, about
CACHE = 256  # MiB of blocks that GDAL keeps; by itself it takes a share of the machine's memory
RGB = ("red", "green", "blue")
EMPTY = "nothing observed"
POINT = "AREA_OR_POINT"
GEOREFERENCED = (33550, 33922, 34264, 34735, 50844)
"""Tags: ModelPixelScale, ModelTiepoint, ModelTransformation, GeoKeyDirectory, RPCCoefficient."""
WORLD_FILES = (".tfw", ".tifw", ".wld")

Window = tuple[slice, slice]


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says where on Earth it is; False for what cannot be opened.

    Raises InputError where rasterio is needed for such a file and does not import.
    """
    if path.suffix.lower() not in TIFF or not path.is_file() or not _may_be_placed(path):
        return False
    rasterio = require_rasterio(path)
    try:
        with environment(rasterio), opened(rasterio, path) as dataset:
            placed = dataset.crs or not dataset.transform.is_identity
            return bool(placed or dataset.gcps[0] or dataset.rpcs)
    except rasterio.errors.RasterioError:
        return False  # the reader of pictures says what is wrong with it


def require_rasterio(path: Path) -> Any:
    """rasterio; InputError about a file that needs it where it does not import."""
    try:
        importlib.import_module("rasterio.shutil")
        return importlib.import_module("rasterio")
    except ImportError as error:
        raise InputError(
            f"{path}: a georeferenced TIFF needs the package rasterio, which does not import "
            f"({error}): pip install 'deeplab-triton[geo]'"
        ) from error


def _may_be_placed(path: Path) -> bool:
    """Whether its first directory or a file beside it may say where it is; without rasterio."""
    beside = (path.with_suffix(suffix) for suffix in WORLD_FILES)
    if path.with_name(f"{path.name}.aux.xml").exists() or any(file.exists() for file in beside):
        return True
    try:
        with path.open("rb") as file:
            header = file.read(8)
            header += file.read(8) if header[2:3] == b"\x2b" else b""  # BigTIFF
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            return any(tag in directory for tag in GEOREFERENCED)
    except Exception:  # whatever the parser meets; the reader of pictures says what is wrong
        return False


def opened(rasterio: Any, path: Path, mode: str = "r", **options: Any) -> Any:
    """A TIFF as rasterio has it."""
    with settings, warnings.catch_warnings():
        # A scene may have a reference system alone, which rasterio warns of.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(os.path.abspath(path), mode, driver="GTiff", **options)


def environment(rasterio: Any) -> Any:
    """What GDAL is told, while it reads or writes."""
    return rasterio.Env(GDAL_CACHEMAX=CACHE)


class _Raster:
    """An open TIFF; a context manager. `path`, `height`, `width`; `dataset`, rasterio's.

    Raises InputError: missing, a folder, empty, locked, no TIFF that GDAL reads.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_file(self.path)
        self._rasterio = require_rasterio(self.path)
        with self._named():
            self.dataset = opened(self._rasterio, self.path)
        self.height, self.width = int(self.dataset.height), int(self.dataset.width)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.dataset.close()

    def windows(self) -> Iterator[Window]:
        """Rows and columns of windows that cover it, each block of the file in one of them."""
        high, wide = self.dataset.block_shapes[0]
        columns = self.width if wide >= self.width else wide * max(1, 2048 // wide)
        rows = high * max(1, PIXELS // (columns * high))
        for top in range(0, self.height, rows):
            for left in range(0, self.width, columns):
                yield (
                    slice(top, min(top + rows, self.height)),
                    slice(left, min(left + columns, self.width)),
                )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What GDAL cannot read as an InputError."""
        try:
            with environment(self._rasterio):
                yield
        except self._rasterio.errors.RasterioError as error:
            reason = error.__cause__ or error
            raise InputError(
                f"{self.path}: the TIFF is damaged, or of a kind that GDAL cannot read "
                f"({reason!s:.200}); copy, download or export it again"
            ) from error


class Scene(_Raster):
    """A georeferenced TIFF as a picture `[H, W, bands]` of which windows are read.

    Args:
        path: the file.
        fill: what unobserved ground reads as, a number for each band that is read: how many, that
            says too.
        dtypes: what values may be of, some of DTYPES, as `Preprocessing.dtypes` has them. int8,
            int16 and floating point become float32; where uint8 alone is taken, uint16 becomes it:
            value / 257, or what makes 255 of the highest value of fewer bits that a file declares.
        bands: which, from 1 on as GDAL counts. None takes all, or all but alpha, whichever are as
            many as `fill`; alpha that is taken is no mask. (GDAL calls the fourth band of 8 bits
            alpha unless it is told otherwise.) Three bands are RGB: red, green and blue where the
            file declares them, whatever else it has; grey three times; the colours of a palette.
        max_megapixels: refuse larger ones.

    Attributes:
        shape: (height, width, bands); dtype: of what is read; path, height, width.
        conversions: what is said of which bands are read, and how.

    Raises InputError: as for pictures, for bands that are not there or not as many as `fill`,
    and for a dtype that has no place among `dtypes`.
    """

    def __init__(
        self,
        path: str | Path,
        fill: Sequence[float],
        dtypes: Sequence[str] = DTYPES,
        bands: Sequence[int] | None = None,
        max_megapixels: float | None = None,
    ) -> None:
        super().__init__(path)
        try:
            check_size(self.path, (self.width, self.height), max_megapixels, bytes_a_pixel=0)
            self.conversions: list[Conversion] = []
            self._palette: np.ndarray | None = None
            self._bands = self._chosen(len(fill), bands)
            stored = self.dataset.dtypes[self._bands[0] - 1]
            self._most = self._highest(stored) if "uint16" not in dtypes else 0
            self.dtype = self._read_as(stored, dtypes)
            self.shape = (self.height, self.width, len(fill))
            self._fill = np.array(fill, np.float64)
            if self.dtype.kind == "u":
                self._fill = self._fill.round().clip(0, np.iinfo(self.dtype).max)
            self._masked = any(self._is_masked(band) for band in self._bands)
        except BaseException:
            self.dataset.close()
            raise

    def read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Values `[h, w, bands]` of a window, and where something was observed, bool `[h, w]`.

        Raises InputError where the file is damaged there.
        """
        values, known = self._values(rows, columns), self._known(rows, columns)
        if values.dtype.kind == "f":
            known = np.isfinite(values) if known is None else known & np.isfinite(values)
        if self._palette is not None:
            values = np.moveaxis(self._palette[values[0]], 2, 0)
        if self._most:
            levels = (values.astype(np.uint32) * 255 + self._most // 2) // self._most
            values = levels.astype(np.uint8)
        if known is None:
            known = np.ones(values.shape, bool)
        observed: np.ndarray = np.logical_or.reduce(known)
        if not known.all():
            lost = ~np.broadcast_to(observed if self.dtype == np.uint8 else known, values.shape)
            values = np.where(lost, self._fill[:, None, None].astype(self.dtype), values)
        return np.ascontiguousarray(np.moveaxis(values, 0, 2)), observed

    def observed(self, rows: slice, columns: slice) -> np.ndarray:
        """Where something of a window was observed, as `read` says."""
        if self._masked or self.dtype.kind == "f":
            return self.read(rows, columns)[1]
        return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)

    def check(self) -> list[Conversion]:
        """Read all of it once: what there is to say of its values.

        Raises InputError where the file is damaged.
        """
        highest, seen = 0, False
        for window in self.windows():
            observed = self.read(*window)[1]
            if observed.any():
                seen = True
                if self._most == DEEPEST:
                    highest = max(highest, int(self._values(*window)[:, observed].max()))
        said = near_zero(highest)
        if not seen:
            said.append((EMPTY, "nothing of it was observed, so that no pixel has a class"))
        return [*self.conversions, *(Conversion(str(self.path), *each) for each in said)]

    def place(self) -> dict[str, Any]:
        """Where it is on Earth, as `rasterio.open` takes it for a new file of the same size."""
        found: dict[str, Any] = {"rpcs": self.dataset.rpcs} if self.dataset.rpcs else {}
        points, system = self.dataset.gcps
        if points:
            return found | {"gcps": points, "crs": system}
        return found | {"crs": self.dataset.crs, "transform": self.dataset.transform}

    def tags(self) -> dict[str, str]:
        """Those of its own that a file of the same place has to have."""
        stored = self.dataset.tags().get(POINT)
        # Ground control points of such a file GDAL would move by half a pixel at each writing.
        return {POINT: stored} if stored == "Point" and not self.dataset.gcps[0] else {}

    def _values(self, rows: slice, columns: slice) -> np.ndarray:
        with self._named():
            values = self.dataset.read(self._bands, window=_bounds(rows, columns))
        if values.dtype.name in WIDENED:
            with np.errstate(over="ignore"):  # Inf counts as not observed
                values = values.astype(np.float32)
        return values

    def _known(self, rows: slice, columns: slice) -> np.ndarray | None:
        """Where each band is neither nodata nor masked, bool `[bands, h, w]`; None: everywhere."""
        if not self._masked:
            return None
        with self._named():
            masks: np.ndarray = self.dataset.read_masks(self._bands, window=_bounds(rows, columns))
        return masks > 0

    def _chosen(self, wanted: int, bands: Sequence[int] | None) -> list[int]:
        count, colours = self.dataset.count, [each.name for each in self.dataset.colorinterp]
        if bands is not None:
            if len(bands) != wanted or not all(1 <= band <= count for band in bands):
                raise InputError(
                    f"{self.path}: bands must be {wanted} number{'s' * (wanted > 1)} from 1 to "
                    f"{count}, the bands of the file, not {','.join(map(str, bands))}"
                )
            return list(bands)
        if count == wanted != 3:
            return list(range(1, count + 1))
        data = [i for i, colour in enumerate(colours, 1) if colour != "alpha"]
        if wanted == 3:
            rgb = [colours.index(each) + 1 for each in RGB if each in colours]
            if len(rgb) == 3:
                if rgb != data:
                    text = f"bands {', '.join(map(str, rgb))} of {count}, its red, green and blue"
                    self._say(BANDS, f"{text}, are taken; --bands takes others")
                return rgb
            if len(data) == 1:
                return self._spread(data[0], colours[data[0] - 1])
        if len(data) != wanted:
            names = [f"{i} {name}" for i, name in enumerate(self.dataset.descriptions, 1) if name]
            there = f" ({', '.join(names):.200})" if names else ""
            example = ",".join(str(1 + i) for i in range(wanted))
            raise InputError(
                f"{self.path} must have {wanted} band{'s' * (wanted > 1)}, as the model takes "
                f"them, not {len(data)}{there}; choose some, counted from 1 (--bands {example})"
            )
        return data

    def _is_masked(self, band: int) -> bool:
        flags, kinds = self.dataset.mask_flag_enums[band - 1], self._rasterio.enums.MaskFlags
        alpha = [i for i, each in enumerate(self.dataset.colorinterp, 1) if each.name == "alpha"]
        taken = kinds.alpha in flags and not set(self._bands).isdisjoint(alpha)
        return not (kinds.all_valid in flags or taken)

    def _spread(self, band: int, colour: str) -> list[int]:
        """One band as three: a palette's colours, or grey."""
        if colour == "palette" and self.dataset.dtypes[band - 1] == "uint8":
            table = np.zeros((256, 3), np.uint8)
            for index, entry in self.dataset.colormap(band).items():
                table[index] = entry[:3]
            self._palette = table
        text = f"{'grey' if self._palette is None else 'palette'} converted to RGB"
        self._say(text, text)
        return [band] * 3

    def _highest(self, stored: str) -> int:
        """What becomes 255 of 16 bits, or of fewer that the file declares; 0: they are not 16."""
        if stored != "uint16":
            return 0
        declared = self.dataset.tags(self._bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "16")
        return int(2 ** int(declared) - 1)

    def _read_as(self, stored: str, dtypes: Sequence[str]) -> np.dtype[Any]:
        if stored in dtypes:
            return np.dtype(stored)
        if self._most:
            bits, how = self._most.bit_length(), f"value / {self._most} * 255"
            self._say(DEEP, f"{bits} bits a channel reduced to 8 ({how})")
            return np.dtype("uint8")
        if "float32" in dtypes and stored in WIDENED:
            return np.dtype("float32")
        raise InputError(
            f"{self.path} must have values of {', '.join(dtypes)} for this model, not {stored}; "
            + (
                "convert it, such as with gdal_translate -ot Float32"
                if "float32" in dtypes
                else "scale it to 0-255, such as with gdal_translate -ot Byte -scale 0 3000 0 255"
            )
        )

    def _say(self, kind: str, text: str) -> None:
        self.conversions.append(Conversion(str(self.path), kind, text))


class LabelMap(_Raster):
    """A label map of a scene, or of a multi-label model its masks, as `cog` has written them."""

    def __init__(self, path: str | Path, masks: bool = False) -> None:
        super().__init__(path)
        self.masks = masks

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Labels `[h, w]`, or masks `[C, h, w]`; UNOBSERVED where nothing was observed."""
        with self._named():
            found: np.ndarray = self.dataset.read(window=_bounds(rows, columns))
        return found if self.masks else found[0]

    def areas(self, classes: int) -> tuple[np.ndarray, int]:
        """Pixels of each class, int64 `[classes]`, and of all that was observed."""
        areas, pixels = np.zeros(classes, np.int64), 0
        for window in self.windows():
            found = self.read(*window)
            observed = found != UNOBSERVED
            if self.masks:
                areas += found.sum((1, 2), where=observed, dtype=np.int64)
                pixels += int(observed[0].sum())
            else:
                areas += np.bincount(found[observed], minlength=classes)
                pixels += int(observed.sum())
        return areas, pixels

    def lon_lat(self, corners: np.ndarray) -> np.ndarray:
        """Longitude and latitude of WGS 84, float64 `[N, 2]`, of corners (x, y) of pixels `[N, 2]`.

        Without a reference system in the units of the transform.
        """
        transform = importlib.import_module("rasterio.transform")
        points, system = self.dataset.gcps
        with environment(self._rasterio):
            if points or (self.dataset.rpcs and self.dataset.transform.is_identity):
                of_points = transform.GCPTransformer if points else transform.RPCTransformer
                with of_points(points or self.dataset.rpcs) as transformer:
                    x, y = transformer.xy(corners[:, 1], corners[:, 0], offset="ul")
            else:
                system, (x, y) = self.dataset.crs, transformed(self.dataset.transform, corners).T
            if system is not None:
                warp = importlib.import_module("rasterio.warp")
                x, y = warp.transform(system, "EPSG:4326", x, y)
        return np.stack([x, y], 1)


def transformed(transform: Any, corners: np.ndarray) -> np.ndarray:
    """Corners (x, y) `[N, 2]` through an affine transform."""
    matrix = np.reshape(transform[:6], (2, 3))
    moved: np.ndarray = corners @ matrix[:, :2].T + matrix[:, 2]
    return moved


def _bounds(rows: slice, columns: slice) -> tuple[tuple[int, int], tuple[int, int]]:
    return (rows.start, rows.stop), (columns.start, columns.stop)
