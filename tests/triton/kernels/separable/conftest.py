"""Small blocks in the interpreter."""

from separable_problems import small_blocks  # noqa: F401
