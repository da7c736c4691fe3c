"""The error that a person can mend: a bad file, a bad option, a bad value.

The command line prints its message as it is and exits with status 2, so the message is one line
that names the file or argument, what was expected, what came, and what to do about it.
"""


class InputError(ValueError):
    """Bad input from outside. The message is one line: runs of white space become one space."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
