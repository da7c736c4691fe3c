"""What Python runs at its start where this folder is on PYTHONPATH: the processes of tests."""

from torchvision_operators import define_on_import

define_on_import()
