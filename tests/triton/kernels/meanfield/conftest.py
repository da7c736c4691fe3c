"""Tiles that suit the interpreter."""

from mean_field_problems import mean_field_tiles  # noqa: F401
