"""Probabilities in .npy and .npz files, of every shape and kind, through `refine`.

Oracle: probabilities that are ones, in whatever dtype, order of axes and file, give the labels that
`refine_probabilities` gives for the array in memory; all others are refused.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from campaign import damage
from campaign.case import Case, Command, Ended
from campaign.network import check_labels
from campaign.rasters import png, raster
from campaign.runner import Family
from crf import Bilateral, Gaussian
from deeplab.crf_settings import CRFSettings
from deeplab.refine import refine_probabilities

HEIGHT, WIDTH = 9, 12
IMAGE = raster("few", HEIGHT, WIDTH, 5)
SETTINGS = CRFSettings(2, Gaussian(2.0, 2.0), Bilateral(3.0, 20.0, 8.0))
OPTIONS = [
    *("--iterations", "2", "--gaussian-weight", "2", "--gaussian-sigma", "2"),
    *("--bilateral-weight", "3", "--bilateral-sigma-xy", "20", "--bilateral-sigma-rgb", "8"),
]


def softmax(classes: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, (classes, HEIGHT, WIDTH))
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def saved(array: Any, form: str, **more: Any) -> bytes:
    content = io.BytesIO()
    if form == ".npy":
        np.save(content, array, allow_pickle=True)
    elif form == "packed":
        np.savez_compressed(content, probabilities=array, **more)
    else:
        np.savez(content, array, **more)
    return content.getvalue()


def refine(name: str, *more: str) -> list[str]:
    return ["refine", "photo.png", name, "--out", "out", *OPTIONS, *more]


def files(name: str, content: bytes) -> dict[str, bytes]:
    return {"photo.png": png(IMAGE, 2), name: content}


def gives(probabilities: np.ndarray) -> Any:
    def check(folder: Path, _ended: Ended) -> None:
        expected = refine_probabilities(
            probabilities.astype(np.float32).clip(min=0), IMAGE, SETTINGS
        )
        check_labels(folder / "out" / "photo_labels.png", expected.labels)

    return check


@st.composite
def sound(draw: Any) -> Case:
    """Probabilities, in any form in which they may be stored."""
    classes = draw(st.integers(2, 30).filter(lambda n: n not in (HEIGHT, WIDTH)))
    dtype = draw(st.sampled_from(("<f4", "<f8", ">f4", ">f8", "<f2")))
    stored = softmax(classes, draw(damage.seeds())).astype(dtype)
    form = draw(st.sampled_from((".npy", "packed", "plain")))
    last, fortran = draw(st.booleans()), draw(st.booleans())
    array = np.moveaxis(stored, 0, 2) if last else stored
    array = np.asfortranarray(array) if fortran else np.ascontiguousarray(array)
    name = f"p{'.npy' if form == '.npy' else '.npz'}"
    said = f"{classes} classes, {array.dtype.str}, {'[H, W, C]' if last else '[C, H, W]'}, {form}"
    return Command(
        said, refine(name), files(name, saved(array, form)), "result", check=gives(stored)
    )


SHAPES = st.lists(st.sampled_from((0, 1, 2, 3, HEIGHT, WIDTH, 300)), max_size=4).filter(
    lambda shape: np.prod(shape, dtype=np.int64) < 200_000
)


@st.composite
def odd(draw: Any) -> Case:
    """Arrays of any shape, type and value: no probabilities, or hardly."""
    shape = draw(st.one_of(SHAPES, st.just([3, HEIGHT, WIDTH]), st.just([HEIGHT, WIDTH, 3])))
    dtype = draw(
        st.sampled_from(("f4", "f8", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", "O", "f2"))
    )
    rng = np.random.default_rng(draw(damage.seeds()))
    array = (
        np.full(shape, None, object) if dtype == "O" else rng.integers(0, 2, shape).astype(dtype)
    )
    form = draw(st.sampled_from((".npy", "packed", "plain")))
    name = f"p{'.npy' if form == '.npy' else '.npz'}"
    whole = array.dtype.kind == "f" and array.ndim == 3 and np.isfinite(array).all()
    right = whole and any(
        tuple(np.delete(array.shape, axis)) == (HEIGHT, WIDTH)
        and array.shape[axis] >= 2
        and np.allclose(array.sum(axis), 1)
        for axis in (0, 2)
    )
    wanted = "result" if right else "refused"
    said = f"{array.dtype.str} {list(shape)} in {form}"
    return Command(
        said, refine(name), files(name, saved(array, form)), wanted, [name] * (not right)
    )


@st.composite
def poisoned(draw: Any) -> Case:
    """Probabilities in which one number is none, or is far from one."""
    array = softmax(3, draw(damage.seeds()))
    place = tuple(draw(st.integers(0, side - 1)) for side in array.shape)
    array[place] = draw(st.sampled_from((np.nan, np.inf, -np.inf, 1e30, -0.5, 2.0, 1e-300)))
    fine = np.isfinite(array).all() and array.min() >= -0.01
    fine = fine and np.allclose(array.sum(0), 1, atol=0.01)
    name = "p.npy"
    return Command(
        f"one value {array[place]:g}",
        refine(name),
        files(name, saved(array, name[1:])),
        "result" if fine else "refused",
    )


@st.composite
def harmed(draw: Any) -> Case:
    array = softmax(3, 7).astype(np.float32)
    form, how = (
        draw(st.sampled_from((".npy", "packed", "plain"))),
        draw(st.sampled_from(sorted(damage.DAMAGES))),
    )
    whole = saved(array, form)
    broken = damage.damaged(whole, how, draw(damage.seeds()))
    name = f"p{'.npy' if form == '.npy' else '.npz'}"
    zipped = form != ".npy"  # whose records have checksums
    check = gives(array) if zipped or how in damage.CUTS else lambda _folder, _ended: None
    return Command(
        f"{form} with {how}", refine(name), files(name, broken), names=[name], check=check
    )


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(sound(), odd(), poisoned(), harmed(), harmed())


class _Dangerous:
    def __reduce__(self) -> Any:
        return open, ("executed", "w")


def handmade(_shared: Path) -> list[Case]:
    array = softmax(3, 1).astype(np.float32)
    made: list[Case] = []
    odd_files = dict(damage.OTHER_FILES)
    odd_files["a pickle with code"] = pickle.dumps(_Dangerous())
    odd_files["an array of objects with code"] = saved(np.array([_Dangerous()], object), ".npy")
    odd_files["a header that claims a terabyte"] = _header("(3, 100000000, 1000)")
    odd_files["a header of code"] = _header("__import__('os').system('touch executed')")
    odd_files["a header that nests"] = _header("(" * 3000 + ")" * 3000)
    odd_files["a header of negative sizes"] = _header("(-3, 9, 12)")
    for what, content in odd_files.items():
        made += [
            Command(f"{what} as {name}", refine(name), files(name, content), "refused", [name])
            for name in ("p.npy", "p.npz")
        ]
    several = saved(array, "plain", other=array)
    right = saved(array, "plain", probabilities=array)
    made.append(
        Command("two arrays", refine("p.npz"), files("p.npz", several), "refused", ["p.npz"])
    )
    made.append(
        Command(
            "one named so", refine("p.npz"), files("p.npz", right), "result", check=gives(array)
        )
    )
    for member in ("../../up.npy", "/tmp/abs.npy", "probabilities.npy", "probabilities"):
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(member, saved(array, ".npy"))
        made.append(
            Command(f"member {member}", refine("p.npz"), files("p.npz", content.getvalue()))
        )
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probabilities.npy", _header("(3, 20000, 10000)") + bytes(1 << 26))
    made.append(
        Command("a packed bomb", refine("p.npz"), files("p.npz", bomb.getvalue()), "refused")
    )
    for options in (["--indices"], ["--gt-prob", "0.9"], ["--classes", "3"]):
        one = files("p.npy", saved(array, ".npy"))
        made.append(
            Command(f"with {options[0]}", refine("p.npy", *options), one, "refused", options[:1])
        )
    return made


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", min(len(text), 65535)) + text + bytes(4096)


FAMILY = Family("arrays", "probabilities in .npy and .npz", lambda _shared: None, cases, handmade)
