"""`python -m deeplab`: the command line."""

from deeplab.cli import main

if __name__ == "__main__":
    main()
