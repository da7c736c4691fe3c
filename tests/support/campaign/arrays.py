"""Probabilities in .npy and .npz files, of every shape and kind, through `refine`.

Oracle: probabilities that are ones, in whatever dtype, order of axes and file, give the labels that
`refine_probabilities` gives for the array in memory; all others are refused.
"""

import io
import pickle
import struct
import zipfile
from functools import partial
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
MEMBERS = ("probabilities.npy", "probabilities", "../../up.npy", "/tmp/abs.npy")
FORMS = st.sampled_from(((".npy", "p.npy"), ("packed", "p.npz"), ("plain", "p.npz")))
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


def gives(probabilities: np.ndarray, folder: Path, _ended: Ended) -> None:
    given = probabilities.astype(np.float32).clip(min=0)
    expected = refine_probabilities(given, IMAGE, SETTINGS).labels
    check_labels(folder / "out" / "photo_labels.png", expected)


@st.composite
def sound(draw: Any) -> Case:
    """Probabilities, in any form in which they may be stored."""
    classes = draw(st.integers(2, 30).filter(lambda n: n not in (HEIGHT, WIDTH)))
    dtype = draw(st.sampled_from(("<f4", "<f8", ">f4", ">f8", "<f2")))
    stored = softmax(classes, draw(damage.seeds())).astype(dtype)
    form, name = draw(FORMS)
    last, fortran = draw(st.booleans()), draw(st.booleans())
    array = np.moveaxis(stored, 0, 2) if last else stored
    array = np.asfortranarray(array) if fortran else np.ascontiguousarray(array)
    said = f"{classes} classes, {array.dtype.str}, {'[H, W, C]' if last else '[C, H, W]'}, {form}"
    laid = files(name, saved(array, form))
    return Command(said, refine(name), laid, "result", check=partial(gives, stored))


SHAPES = st.lists(st.sampled_from((0, 1, 2, 3, HEIGHT, WIDTH, 300)), max_size=4).filter(
    lambda shape: np.prod(shape, dtype=np.int64) < 200_000
)


@st.composite
def odd(draw: Any) -> Case:
    """Arrays of any shape, type and value: no probabilities, or hardly."""
    shape = draw(st.one_of(SHAPES, st.just([3, HEIGHT, WIDTH]), st.just([HEIGHT, WIDTH, 3])))
    dtypes = ("f4", "f8", "i8", "u1", "?", "c8", "U3", "S2", "M8[s]", "O", "f2")
    dtype = draw(st.sampled_from(dtypes))
    array = np.random.default_rng(draw(damage.seeds())).integers(0, 2, shape).astype(dtype)
    if dtype == "O":
        array = np.full(shape, None, object)
    form, name = draw(FORMS)
    whole = array.dtype.kind == "f" and array.ndim == 3 and np.isfinite(array).all()
    right = whole and any(
        tuple(np.delete(array.shape, axis)) == (HEIGHT, WIDTH)
        and array.shape[axis] >= 2
        and np.allclose(array.sum(axis), 1)
        for axis in (0, 2)
    )
    said, laid = f"{array.dtype.str} {list(shape)} in {form}", files(name, saved(array, form))
    if right:
        return Command(said, refine(name), laid, "result")
    return Command(said, refine(name), laid, "refused", [name])


@st.composite
def poisoned(draw: Any) -> Case:
    """Probabilities in which one number is none, or is far from one."""
    array = softmax(3, draw(damage.seeds()))
    place = tuple(draw(st.integers(0, side - 1)) for side in array.shape)
    array[place] = draw(st.sampled_from((np.nan, np.inf, -np.inf, 1e30, -0.5, 2.0, 1e-300)))
    fine = np.isfinite(array).all() and array.min() >= -0.01
    fine = fine and np.allclose(array.sum(0), 1, atol=0.01)
    laid = files("p.npy", saved(array, ".npy"))
    wanted = "result" if fine else "refused"
    return Command(f"one value {array[place]:g}", refine("p.npy"), laid, wanted)


@st.composite
def harmed(draw: Any) -> Case:
    array = softmax(3, 7).astype(np.float32)
    form, name = draw(FORMS)
    how, broken = damage.harm(draw, saved(array, form))
    zipped = form != ".npy"  # whose records have checksums
    check = partial(gives, array) if zipped or how in damage.CUTS else lambda _folder, _ended: None
    laid = files(name, broken)
    return Command(f"{form} with {how}", refine(name), laid, names=[name], check=check)


def cases(_shared: Path) -> st.SearchStrategy[Case]:
    return st.one_of(sound(), odd(), poisoned(), harmed(), harmed())


def handmade(_shared: Path) -> list[Case]:
    array = softmax(3, 1).astype(np.float32)
    code = damage.Dangerous()
    odd_files = damage.OTHER_FILES | {
        "a pickle with code": pickle.dumps(code),
        "an array of objects with code": saved(np.array([code], object), ".npy"),
        "a header that claims a terabyte": _header("(3, 100000000, 1000)"),
        "a header of code": _header("__import__('os').system('touch executed')"),
        "a header that nests": _header("(" * 3000 + ")" * 3000),
        "a header of negative sizes": _header("(-3, 9, 12)"),
    }
    made: list[Case] = [
        Command(f"{what} as {name}", refine(name), files(name, content), "refused", [name])
        for what, content in odd_files.items()
        for name in ("p.npy", "p.npz")
    ]
    zipped = {f"member {m}": (m, saved(array, ".npy"), None) for m in MEMBERS} | {
        "a packed bomb": (MEMBERS[0], _header("(3, 20000, 10000)") + bytes(1 << 26), "refused")
    }
    for what, (member, content, wanted) in zipped.items():
        archived = io.BytesIO()
        with zipfile.ZipFile(archived, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        made.append(Command(what, refine("p.npz"), files("p.npz", archived.getvalue()), wanted))
    several = files("p.npz", saved(array, "plain", other=array))
    made.append(Command("two arrays", refine("p.npz"), several, "refused", ["p.npz"]))
    right = files("p.npz", saved(array, "plain", probabilities=array))
    made.append(
        Command("one named so", refine("p.npz"), right, "result", check=partial(gives, array))
    )
    one = files("p.npy", saved(array, ".npy"))
    for options in (["--indices"], ["--gt-prob", "0.9"], ["--classes", "3"]):
        args = refine("p.npy", *options)
        made.append(Command(f"with {options[0]}", args, one, "refused", options[:1]))
    return made


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", min(len(text), 65535)) + text + bytes(4096)


FAMILY = Family("arrays", "probabilities in .npy and .npz", lambda _shared: None, cases, handmade)
