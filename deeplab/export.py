"""A model as a program that runs without this package's Python: torch.export, ONNX, AOTInductor.

    format      file      what runs it                                       CRF
    export      .pt2      torch.export.load(path).module()                   none
    onnx        .onnx     onnxruntime and others; plain convolutions         none
    aoti        .pt2      torch._inductor.aoti_load_package(path), in Python or C++, on CPUs

The program takes `x`, float32 `[B, in_channels, H, W]`, preprocessed, and gives the logits
`[B, classes, H, W]`. Batch and size are free, from MINIMUM pixels up, unless a size is given. What
its user must know - how to preprocess, the classes, their colours - stands beside it as JSON, in a
file of the same name and `.json`.

Source: PyTorch's documentation of torch.export, torch.onnx.export(dynamo=True) and AOTInductor.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeplab.data import outputs
from deeplab.data.datasets import IGNORE
from deeplab.errors import InputError
from deeplab.model import DeepLab
from deeplab.predict import BYTES_A_PIXEL
from deeplab.weights.file import metadata_problem
from deeplab.weights.portable import without_folders
from deeplab.whole_file import whole_file
from kernels import memory

Format = Literal["export", "onnx", "aoti"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES = {"export": ".pt2", "onnx": ".onnx", "aoti": ".pt2"}
OPSET = 18  # of ONNX; Resize can do there what F.interpolate does
MINIMUM = 33  # pixels of height and width: below, maps of one pixel would be cases of their own
# Batch, height and width: of the example from which a program of free size is made, and of those
# that it is compared on, even and odd, larger and smaller.
TRACED = (2, 65, 72)
COMPARED = ((1, 65, 72), (2, 41, 40), (1, 160, 90))
TOLERANCE = 1e-4  # of the largest logit: a hundred layers' rounding in float32, never a wrong layer

Program = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the program. description: the JSON beside it.
        error: largest difference from the model's logits, relative to the largest logit.
    """

    path: Path
    description: Path
    error: float


def export(
    model: DeepLab,
    path: str | os.PathLike[str],
    format: Format | None = None,
    *,
    size: tuple[int, int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the model as a program, read it back, and compare the two; all or nothing.

    model: any DeepLab without a CRF layer; the program has its weights in float32, in evaluation
        mode, for the CPU. The model itself is left as it is.
    path: ends in .onnx or .pt2; an existing file is replaced.
    format: None takes "onnx" for .onnx and "export" for .pt2.
    size: (height, width) in pixels of the only size that the program takes; None for any.
    metadata: class_names, palette and other JSON-able facts for the description.

    Raises InputError for a model with a CRF layer, an unknown format or suffix, a missing package
    or compiler, a file that cannot be written, and a program that does not agree with the model.
    """
    path = Path(path)
    chosen = _checked_format(path, format)
    _check_size(size)
    if model.crf is not None:
        raise InputError(
            f"{path}: the model ends in a CRF layer, whose operators no exported program can run; "
            "set model.crf = None, export the network, and refine its probabilities with "
            "deeplab.refine or deeplab refine"
        )
    make, read = _MAKERS[chosen], _READERS[chosen]
    _require(chosen)
    outputs.check_writable_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    network = copy.deepcopy(model).to("cpu", torch.float32).eval()
    description = path.with_name(path.name + ".json")
    text = _described(model, chosen, size, metadata or {})
    with (
        warnings.catch_warnings(action="ignore"),  # of the exporters about themselves
        torch.no_grad(),
        _disk_errors_of(path),
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        part = Path(folder, f"program{SUFFIXES[chosen]}")
        with whole_file(part) as file:
            file.write(make(network, size))
        error = _largest_error(network, read(part), size)
        if not error <= TOLERANCE:  # NaN is no agreement
            mend = "use another format" if size else "give a fixed size (--size), or another format"
            raise InputError(
                f"{path}: the {chosen} program differs from the model by {error:.1e} of its "
                f"largest logit, {TOLERANCE:.0e} is allowed; nothing was written: {mend}"
            )
        outputs.write_text(description, text)
        part.replace(path)
    return Exported(path, description, error)


# Programs are made in memory: PyTorch's writer of archives ends the process where a disk is full.


def _make_export(model: DeepLab, size: tuple[int, int] | None) -> bytes:
    content = io.BytesIO()
    torch.export.save(_traced(model, size), content)
    return content.getvalue()


def _read_export(path: Path) -> Program:
    return torch.export.load(path).module()


def _make_onnx(model: DeepLab, size: tuple[int, int] | None) -> bytes:
    program = torch.onnx.export(
        model,
        (_example(model, size),),
        dynamo=True,
        dynamic_shapes={"x": _free(size)},  # by name, which the file then says
        input_names=["x"],
        output_names=["logits"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _read_onnx(path: Path) -> Program:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])


def _make_aoti(model: DeepLab, size: tuple[int, int] | None) -> bytes:
    inductor: Any = importlib.import_module("torch._inductor")
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d) and child.ceil_mode and child.stride == 2:
                setattr(parent, name, PaddedMaxPool())
    content = io.BytesIO()
    errors: Any = importlib.import_module("torch._inductor.exc")
    try:
        inductor.aoti_compile_and_package(_traced(model, size), package_path=content)
    except (errors.InductorError, errors.CppCompileError) as error:
        lines = str(error).splitlines()
        reason = next((line for line in lines if "error: " in line), lines[0])
        raise InputError(
            f"AOTInductor cannot compile this here ({reason:.200}); mend the compiler, or use "
            "format export or onnx"
        ) from error
    return content.getvalue()


def _read_aoti(path: Path) -> Program:
    inductor: Any = importlib.import_module("torch._inductor")
    return inductor.aoti_load_package(str(path))


class PaddedMaxPool(nn.Module):
    """3x3 max pooling, stride 2, padding 1, rounding up, said without rounding: for AOTInductor.

    The inductor looks at the traced size to see whether rounding up matters. If it does not, it
    drops the check of bounds and notes a guard, which a package does not carry: at other sizes the
    program would read beyond the map.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (1, 2, 1, 2), value=float("-inf")), 3, stride=2)


_MAKERS = {"export": _make_export, "onnx": _make_onnx, "aoti": _make_aoti}
_READERS = {"export": _read_export, "onnx": _read_onnx, "aoti": _read_aoti}


def _traced(model: DeepLab, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    free = dict.fromkeys(_free(size), torch.export.Dim.DYNAMIC)
    return torch.export.export(model, (_example(model, size),), dynamic_shapes={"x": free})


def _example(model: DeepLab, size: tuple[int, int] | None) -> Tensor:
    batch, *sides = TRACED
    return torch.zeros(batch, model.in_channels, *(size or sides))


def _free(size: tuple[int, int] | None) -> dict[int, str]:
    """The axes of x that may have any length, and their names."""
    return {0: "batch", 2: "height", 3: "width"} if size is None else {0: "batch"}


def _largest_error(model: DeepLab, program: Program, size: tuple[int, int] | None) -> float:
    """Over noise as strong as preprocessed pictures, relative to the largest logit."""
    shapes = COMPARED if size is None else ((1, *size), (2, *size))
    strength = 64.0 if model.preprocessing.unscaled else 1.0
    generator = torch.Generator().manual_seed(0)
    errors = []
    for batch, *sides in shapes:
        x = strength * torch.randn(batch, model.in_channels, *sides, generator=generator)
        expected = model(x)
        errors.append((program(x) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(errors).max())  # NaN if any is


def _described(
    model: DeepLab, format: Format, size: tuple[int, int] | None, metadata: Mapping[str, Any]
) -> str:
    facts = {
        "palette": outputs.voc_palette()[: model.num_classes].tolist(),
        **without_folders(metadata),
        "model": model.config["model"],
        "num_classes": model.num_classes,
        "options": {k: v for k, v in model.config.items() if k not in ("model", "num_classes")},
        "format": format,
        "made_with": {name: version(name) for name in ("deeplab-triton", "torch")},
        "input": {
            "name": "x",
            "dtype": "float32",
            "shape": ["batch", model.in_channels, *(size or ("height", "width"))],
            "minimum_height_and_width": min(size) if size else MINIMUM,
        },
        "preprocessing": model.preprocessing.described(),
        "output": {
            "name": "logits",
            "shape": ["batch", model.num_classes, "height", "width"],
            "probabilities": "sigmoid" if model.multilabel else "softmax over axis 1",
        },
        "ignore_label": IGNORE,  # in label maps to train or score on: pixels that do not count
    }
    try:
        text = json.dumps(facts, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(
            f"metadata: {error}; use numbers, strings, lists and dicts (array.tolist())"
        ) from error
    if problem := metadata_problem(facts):
        raise InputError(f"metadata: {problem}")
    return text


def _checked_format(path: Path, format: str | None) -> Format:
    if format is not None and format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    known = {"": "", ".onnx": "onnx", ".pt2": "export"}
    chosen: Any = format or known.get(path.suffix)
    if not chosen or SUFFIXES[chosen] != path.suffix:
        wanted = SUFFIXES[chosen] if chosen else ".onnx or .pt2"
        raise InputError(f"{path} must be a name that ends in {wanted}")
    return chosen


def _check_size(size: tuple[int, int] | None) -> None:
    if size is None:
        return
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"size must be height and width from 1 up, not {size}")
    needed = 2 * BYTES_A_PIXEL * size[0] * size[1]  # two pictures are compared at a time
    try:
        memory.require(needed, torch.device("cpu"), "the comparison", "give a smaller size")
    except MemoryError as error:
        raise InputError(f"size {size[0]} x {size[1]}: {error}") from error


def _require(format: Format) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise InputError(
                    f"ONNX needs the package {package}, which does not import ({error}): "
                    "pip install 'deeplab-triton[export]'"
                ) from error
    if format == "aoti":
        builder: Any = importlib.import_module("torch._inductor.cpp_builder")
        try:
            builder.get_cpp_compiler()
        except RuntimeError as error:
            raise InputError(
                "AOTInductor needs a C++ compiler and found none; install g++ or clang++, or use "
                "format export or onnx"
            ) from error


@contextmanager
def _disk_errors_of(path: Path) -> Iterator[None]:
    """A full or broken disk, beside the program or where a compiler works, as InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot write the program ({error}); make room, or choose another folder"
        ) from error
