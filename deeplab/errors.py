"""The error that a person can mend: a bad file, a bad option, a bad value.

The command line prints its message as it is and exits with status 2, so the message is one line
that names the file or argument, what was expected, what came, and what to do about it.
"""


class InputError(ValueError):
    """Bad input from outside, said in one printable line.

    Runs of white space become one space and control characters are escaped: messages quote file
    names and file contents, which may hold anything.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class OutputError(InputError):
    """A result that cannot be written: no input is to blame, and the next ones would fare alike."""


def printable(message: str) -> str:
    """One line: runs of white space become one space, control characters are escaped."""
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
