"""What compiled CPU code rests on: machine code by numba, cached on disk, vectors, threads."""
