"""Data: generated scenes (``scenes``) and reading pictures (``images``)."""
