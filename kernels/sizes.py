"""Sizes of launches, in plain integers: `triton.cdiv` and `next_power_of_2` take 2 us a call."""


def blocks(count: int, block: int) -> int:
    """How many blocks of that size hold `count`, the last one perhaps in part."""
    return -(-count // block)


def power_of_2(least: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (least - 1).bit_length()
