"""Python in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start_two(*command: str) -> list[subprocess.Popen]:
    """Python with this command in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "OMP_NUM_THREADS": 1}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        about |= {"PYTHONPATH": f"{ROOT / 'tests' / 'support'}:{ROOT}"}
        environment = os.environ | {name: str(value) for name, value in about.items()}
        children.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return children
