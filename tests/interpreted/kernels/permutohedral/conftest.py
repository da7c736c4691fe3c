"""Tiles that suit the interpreter."""

from lattice_problems import suitable_tiles  # noqa: F401
