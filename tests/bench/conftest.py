"""The modules of bench/ find each other by their folder, as when compare.py is run as a script."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
