"""Drop-in for pydensecrf."""
