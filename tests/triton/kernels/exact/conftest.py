"""Small tiles in the interpreter."""

from exact_problems import small_tiles  # noqa: F401
