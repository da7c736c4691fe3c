"""deeplab.errors: the message that the command line prints is one printable line."""

from deeplab.errors import InputError


def test_the_message_is_one_printable_line():
    message = str(InputError("a\nfile\tcalled \x1b[31mred\x1b[0m   “é”\x00"))
    assert message == r"a file called \x1b[31mred\x1b[0m “é”\x00"


def test_it_is_a_value_error():
    assert issubclass(InputError, ValueError)
