"""TOML texts: values of every type, and texts that are no TOML."""

import random
from typing import Any

import tomli_w
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.text(max_size=12),
    st.dates(),
    st.just(""),
    st.sampled_from((0, -1, 1, 1e308, float("nan"), float("inf"), "auto", "1", 2**63, 1e-320)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)

ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)

_TEXTS = (
    *(b"= 3", b"a = ", b"a = 1\na = 2", b"[a]\n[a]", b"a.b = 1\na = 2", b'a = "unclosed'),
    *(b"a = [1, 2", b"a = {b = 1", b"\xff\xfe", b"\xef\xbb\xbfa = 1", b"a = 1979-13-45"),
    *(b"a = 0x", b"a = 1__0", b"\0", b"a = '''", b"[[[a]]]", b"a = [[[[[[", b'"" = 1'),
    *(b"a\tb = 1", b"a = 99999999999999999999999999999999999", b"a = 1e99999"),
    b"# only a comment",
    b"x = " + b"[" * 3000,
    b"x = " + b"[" * 3000 + b"]" * 3000,
    b"x = " + b"{a = " * 3000 + b"1" + b"}" * 3000,
    b"a." * 3000 + b"b = 1",
)


def broken_toml(chance: random.Random) -> bytes:
    """A text that is no TOML, or hardly."""
    text = chance.choice(_TEXTS)
    return text if chance.random() < 0.5 else b"steps = 3\n[crf]\niterations = 3\n" + text


def dumps(table: dict[str, Any]) -> bytes:
    return tomli_w.dumps(table).encode("utf-8", "surrogatepass")
