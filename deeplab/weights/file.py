"""The weights file: safetensors, tensors named as in the model's state dict, JSON in the metadata.

Each metadata value is a JSON text. These keys are written for every model; the others are free:

    model           name in `deeplab.model.MODELS` or `FAMILIES`
    num_classes     integer
    options         the builder's other arguments, {"rates": [6, 12, 18, 24], ...}

and two more have a meaning where they are present: `class_names` (a string for each class) and
`palette` (an [r, g, b] in 0-255 for each class, and more rows if wanted).

A CRF layer is no part of the weights: its settings are chosen where it is built. Those that suit
the weights, found or learned, stand in the metadata as `crf` (deeplab.crf_settings.CRFSettings).
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from deeplab.errors import InputError
from deeplab.model import DeepLab, build
from deeplab.model.multiscale import RESIZES, Resize, checked_scales
from deeplab.model.styles import STYLES
from deeplab.model.table import FamilyOptions, Line, line_of
from deeplab.weights import bands, foreign, registry
from deeplab.weights.portable import without_folders
from deeplab.whole_file import whole_file

SHIPPED = Path(__file__).with_name("deeplab_v2_small_scenes.safetensors")
OPTIONS = tuple(FamilyOptions.__annotations__)  # of any model
FLOATING = ("F16", "BF16", "F32", "F64")  # safetensors' names; converted to the model's dtype

StrPath = str | os.PathLike[str]


def save_weights(model: DeepLab, path: StrPath, metadata: Mapping[str, Any] | None = None) -> None:
    """Write the network's weights and what is known about them, all or nothing (`whole_file`).

    metadata: JSON-able values: class_names, palette, recipe, commit, metrics, ... The keys model,
        num_classes and options come from the model. Absolute paths in the recipe are written as
        their last names.

    Raises TypeError where `model` is no DeepLab, InputError for metadata that does not fit the
    model or is not JSON-able, and for a file that cannot be written.
    """
    if not isinstance(model, DeepLab):
        raise TypeError(
            f"model must be a DeepLab, not {type(model).__name__}; "
            "unwrap a compiled model as model._orig_mod, a DistributedDataParallel as model.module"
        )
    path = Path(path)
    described = _describe(model) | without_folders(metadata or {})
    clash = [key for key, value in _describe(model).items() if described[key] != value]
    if clash:
        raise InputError(f"metadata: {', '.join(clash)} comes from the model; leave it out")
    if problem := metadata_problem(described):
        raise InputError(f"metadata: {problem}")
    try:
        texts = {str(key): json.dumps(value) for key, value in described.items()}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata: {error}; use numbers, strings, lists and dicts (array.tolist())"
        ) from error
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network_state(model).items()}
    if os.path.isdir(path):
        raise InputError(f"{path}: cannot write the weights (it is a folder); name a file in it")
    try:
        with whole_file(path) as file:
            file.write(save(tensors, texts))
    except OSError as error:
        raise InputError(
            f"{path}: cannot write the weights ({error.strerror or error}); "
            "choose a file in an existing folder that can be written"
        ) from error


def read_metadata(path: StrPath) -> dict[str, Any]:
    """What the file says about itself; a value that is no JSON is given as the text it is.

    Raises InputError where the file cannot be read or its metadata contradict each other.
    """
    path = named_path(path)
    with _open(path) as file:
        return _metadata(file, path)


def load_own(
    model: DeepLab, path: Path
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Copy the file's tensors into `model`, converted to its dtype and device.

    Names and shapes must agree exactly and, where the file says for which model it was made, so
    must backbone, style and rates; if not, InputError lists the differences before anything is
    copied. Of a model with another head the body alone is taken.

    Returns the names of what was copied, of what was not: another head, or classifiers where the
    file says that it is for another number of classes, and of what was adapted to the model's
    bands.
    """
    with _open(path) as file:
        metadata = _metadata(file, path)
        skipped = []
        if body_only := not _same_head(model, metadata, path):
            skipped = [name for name in network_state(model) if not name.startswith("backbone.")]
        elif metadata.get("num_classes", model.num_classes) != model.num_classes:
            skipped = [name for name in network_state(model) if ".classifier." in name]
        grey_levels = _sees_grey_levels(model, metadata, path)
        adapted = [n for n in _to_adapt(model, file, grey_levels) if n not in skipped]
        _check_tensors(model, file, path, (*skipped, *adapted), body_only=body_only)
        stored = _read_tensors(model, file, path, skipped)
    if other := _other_statistics(model, metadata, path):
        warnings.warn(f"{path}: {other}", stacklevel=3)
    for name in adapted:
        stored[name] = bands.adapted(stored[name], model.in_channels, grey_levels)
    state = network_state(model)
    for name, tensor in stored.items():
        state[name].copy_(tensor)
    return tuple(stored), tuple(skipped), tuple(adapted)


def stored_scales(path: Path) -> tuple[tuple[float, ...] | None, Resize | None]:
    """The scales (MSC) of the model that the file describes, and how it resizes; None as there, or
    where the file does not say. Raises InputError where they make no sense."""
    with _open(path) as file:
        options = _options(_metadata(file, path), path)
    try:
        scales = checked_scales(options.get("scales"))
    except ValueError as error:
        raise InputError(
            f"{path}: bad metadata: {error}; use a file written by save_weights"
        ) from error
    return None if scales is None else tuple(scales), options.get("resize")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The file's tensors as they lie there; raises InputError as `read_metadata` does."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping


def load_model(path: StrPath | None = None) -> DeepLab:
    """The model that the file describes, with its weights: on the CPU, float32, evaluation mode.

    path: a file of `save_weights`, or a name; None for the weights shipped with this package, which
        know the generated scenes of `deeplab.data.scenes` only.

    Raises InputError where the file cannot be read or does not describe a model of this package.
    """
    path = named_path(path)
    with _open(path) as file:
        metadata = _metadata(file, path)
        # Built without memory first: a header that claims a billion classes must cost nothing.
        with torch.device("meta"):
            model = _build(metadata, path)
        _check_tensors(model, file, path)
        stored = _read_tensors(model, file, path)
    model.load_state_dict(stored, assign=True)
    if any(
        buffer.is_meta for buffer in model.buffers()
    ):  # constants of timm that it does not store
        model = _build(metadata, path)
        model.load_state_dict(stored, assign=True)
    return model.eval()


def named_path(path: StrPath | None) -> Path:
    """The path; of the weights of that name, downloaded if need be; of those shipped for None.

    Raises InputError where the shipped weights are missing, or a download fails.
    """
    if path is None and not SHIPPED.is_file():
        raise InputError(
            f"the shipped weights {SHIPPED} are missing from this installation; "
            "reinstall deeplab-triton, or name a weights file"
        )
    if path is None or (os.fspath(path) == registry.SCENES and not os.path.exists(path)):
        return SHIPPED
    return registry.path_of(path)


def _describe(model: DeepLab) -> dict[str, Any]:
    options = dict(model.config)
    return {
        "model": options.pop("model"),
        "num_classes": options.pop("num_classes"),
        "options": options,
    }


def _build(metadata: dict[str, Any], path: Path) -> DeepLab:
    missing = [key for key in ("model", "num_classes", "options") if key not in metadata]
    if missing:
        raise InputError(
            f"{path}: its metadata do not say which model it belongs to ({', '.join(missing)} "
            "missing); build the model yourself and use load_weights(model, path)"
        )
    options, stored = _options(metadata, path), metadata["options"]
    try:
        if options != stored or "crf" in options:
            raise ValueError(f"options must be the arguments of a model, not {stored!r:.80}")
        return build(metadata["model"], num_classes=metadata["num_classes"], **options)
    except ImportError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{path}: its metadata describe no model of this version: {error}; "
            "use a file written by save_weights"
        ) from error


def _options(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    """The model's options, none where the file says none; refuses those that are not known here."""
    options = metadata.get("options")
    if not isinstance(options, dict):
        return {}
    known: dict[str, Sequence[str]] = {"style": STYLES, "resize": RESIZES}
    strange = [f"option {key}" for key in options if key not in OPTIONS]
    strange += [
        f"{key} {options[key]!r:.40} (known: {', '.join(values)})"
        for key, values in known.items()
        if key in options and options[key] not in values
    ]
    if strange:
        raise InputError(
            f"{path}: its metadata have what this version does not know: {some(strange)}; a newer "
            "one may have written it: update deeplab-triton"
        )
    return options


def _same_head(model: DeepLab, metadata: dict[str, Any], path: Path) -> bool:
    """Whether the file has a head of the model's kind; no shape would tell.

    Refuses weights of another backbone or style, and of the same head at other rates.
    """
    options, config = _options(metadata, path), model.config
    said = {key: options.get(key) for key in ("rates", "style")}
    theirs, ours = _line(metadata.get("model"), options), _line(config["model"], config)
    if theirs is None or ours is None or theirs.backbone != ours.backbone:
        said |= {"model": metadata.get("model"), "backbone": options.get("backbone")}
    elif theirs.kind != ours.kind:
        del said["rates"]
    if model.preprocessing.mean is None:
        said["mean"] = options.get("mean")
    differing = [key for key in said if said[key] is not None and said[key] != config.get(key)]
    if differing:
        told = ", ".join(f"{key} {said[key]}" for key in differing)
        here = ", ".join(f"{key} {config.get(key)}" for key in differing)
        raise InputError(
            f"{path}: weights of another model: the file has {told}, this model has {here}; "
            "use load_model(path), which builds the model that the file describes"
        )
    return theirs is None or ours is None or theirs.kind == ours.kind


def _line(name: Any, options: Mapping[str, Any]) -> Line | None:
    """The line of the table; None where there is none."""
    try:
        return line_of(name, options)
    except (TypeError, ValueError):
        return None


def _other_statistics(model: DeepLab, metadata: dict[str, Any], path: Path) -> str:
    """What to say where the file's model has another mean or deviation of its own."""
    options = _options(metadata, path)
    names = [n for n in ("mean", "deviation") if options.get(n) not in (None, model.config.get(n))]
    if not names:
        return ""
    theirs = ", ".join(f"{name} {options[name]!s:.80}" for name in names)
    return f"trained with {theirs}, and this model has others; train it before use"


def _sees_grey_levels(model: DeepLab, metadata: dict[str, Any], path: Path) -> bool:
    """Whether the stored weights are for pictures as style "caffe" has them; see `bands`."""
    options = _options(metadata, path)
    if not options:
        return model.style == "caffe" and model.in_channels != 3
    return options.get("style", "caffe") == "caffe" and options.get("mean") is None


def _to_adapt(model: DeepLab, file: Any, grey_levels: bool) -> list[str]:
    expected = {name: tensor.shape for name, tensor in network_state(model).items()}
    found = set(file.keys())
    slices = {name: file.get_slice(name) for name in expected if name in found}
    stored = {n: part.get_shape() for n, part in slices.items() if part.get_dtype() in FLOATING}
    return bands.to_adapt(model, expected, stored, grey_levels)


def _check_tensors(
    model: DeepLab,
    file: Any,
    path: Path,
    skipped: Sequence[str] = (),
    *,
    body_only: bool = False,
) -> None:
    """Refuse tensors that do not fit; the shapes of those `skipped` do not matter."""
    part = "backbone." if body_only else ""
    expected = {n: tensor for n, tensor in network_state(model).items() if n.startswith(part)}
    found = {name for name in file.keys() if name.startswith(part)}  # noqa: SIM118  no mapping
    refuse_misfits(
        model,
        path,
        missing=[name for name in expected if name not in found],
        unexpected=sorted(found - expected.keys()),
        shapes=[
            difference
            for name, tensor in expected.items()
            if name in found
            and name not in skipped
            and (difference := _difference(name, tensor, file.get_slice(name)))
        ],
    )


def refuse_misfits(
    model: DeepLab, path: Path, *, missing: list[str], unexpected: list[str], shapes: list[str]
) -> None:
    """Raise InputError where one of the lists has an entry, with all of them."""
    problems = {"missing": missing, "unexpected": unexpected, "of another shape or type": shapes}
    listed = [f"{len(names)} {kind}: {some(names)}" for kind, names in problems.items() if names]
    if listed:
        raise InputError(
            f"{path}: its tensors do not fit {model.config['model']} with {model.num_classes} "
            f"classes: {'; '.join(listed)}; load the weights of this model, or build the model "
            "of these weights"
        )


def _difference(name: str, tensor: Tensor, stored: Any) -> str:
    """How the stored tensor differs from the expected one; empty where it does not."""
    shape, dtype = list(stored.get_shape()), stored.get_dtype()
    if shape != list(tensor.shape):
        return f"{name} {shape} instead of {list(tensor.shape)}"
    if dtype not in (FLOATING if tensor.is_floating_point() else ("I64",)):
        return f"{name} {dtype} instead of {str(tensor.dtype).removeprefix('torch.')}"
    return ""


def some(names: Sequence[str], limit: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:120] for name in names[:limit]) + more


def _read_tensors(
    model: DeepLab, file: Any, path: Path, skipped: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The file's tensors in the dtypes of the model, on the CPU, independent of the file."""
    stored = {
        name: file.get_tensor(name).to(tensor.dtype, copy=True)
        for name, tensor in network_state(model).items()
        if name not in skipped
    }
    broken = [name for name, tensor in stored.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(
            f"{path}: NaN or Inf in {len(broken)} tensors: {some(broken)}; "
            "the training diverged, or the file is damaged: use an earlier checkpoint"
        )
    return stored


def network_state(model: DeepLab) -> dict[str, Tensor]:
    """The state dict without the CRF layer: aliases of the model's tensors, detached."""
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("crf.")}


def check_is_file(path: Path) -> None:
    """Raise InputError where it is missing, a folder or a device: to open a pipe would wait."""
    if not path.exists():
        raise InputError(
            f"{path}: no such weights file; check the path, or take a name of deeplab weights list"
        )
    if not path.is_file():
        raise InputError(f"{path} must be a weights file, not a folder or device")


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        check_is_file(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        with suppress(OSError):
            if what := foreign.kind(path):
                raise InputError(
                    f"{path}: not a readable safetensors file but {what}; name the file that "
                    "save_weights wrote (deeplab convert reads .pth and .caffemodel)"
                ) from error
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); it may be cut off or of another "
            "format (deeplab convert reads .pth and .caffemodel): fetch or write it again"
        ) from error


def _metadata(file: Any, path: Path) -> dict[str, Any]:
    metadata = {key: _from_json(text) for key, text in (file.metadata() or {}).items()}
    if problem := metadata_problem(metadata):
        raise InputError(f"{path}: bad metadata: {problem}; use a file written by save_weights")
    return metadata


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def metadata_problem(metadata: Mapping[str, Any]) -> str:
    """What is wrong with the class count, names or palette, in a phrase; empty if nothing is."""
    classes = metadata.get("num_classes")
    if classes is not None and (isinstance(classes, bool) or not isinstance(classes, int)):
        return f"num_classes must be an integer, not {classes!r:.80}"
    names = metadata.get("class_names")
    if names is not None:
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            return f"class_names must be a list of strings, not {names!r:.80}"
        if classes is not None and len(names) != classes:
            return f"class_names must be {classes} names, one for each class, not {len(names)}"
    palette = metadata.get("palette")
    if palette is not None:
        if not isinstance(palette, list | tuple) or not all(_is_colour(row) for row in palette):
            return "palette must be a list of [r, g, b] with integers in 0-255"
        if classes is not None and len(palette) < classes:
            return f"palette must be at least {classes} colours, not {len(palette)}"
    return ""


def _is_colour(row: object) -> bool:
    return (
        isinstance(row, list | tuple)
        and len(row) == 3
        and all(isinstance(level, int) and 0 <= level <= 255 for level in row)
    )
