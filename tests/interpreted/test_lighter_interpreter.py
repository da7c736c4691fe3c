"""tests/support/lighter_interpreter.py decides as Triton's interpreter does."""

from __future__ import annotations

import itertools

import numpy as np

NUMBERS = (0, 1, -3, 200, 2**31, 2**40, True, False, 0.0, 1.5, float("inf"), 1e300)
SHAPES = ((), (4,), (1, 4), (2, 1), (8,))


def test_operands_of_any_two_types_are_made_alike_as_by_triton_the_first_time_and_later():
    import triton.language as tl
    from triton.runtime import interpreter

    semantic = interpreter.interpreter_semantic
    alike = type(semantic).binary_op_type_checking_impl
    types = [tl.int1, tl.uint8, tl.int32, tl.int64, tl.float16, tl.float32]
    types += [tl.pointer_type(tl.float32)]
    random = np.random.default_rng(0)

    def value(type, shape):
        data = random.integers(0, 2, shape or (1,)).astype(interpreter._get_np_dtype(type))
        of_shape = tl.block_type(type, list(shape)) if shape else type
        return tl.tensor(interpreter.TensorHandle(data, type), of_shape)

    def told(decide, *arguments):
        """What of `decide`'s answer a kernel can see."""
        try:
            made = decide(*arguments)
        except Exception as error:
            return type(error), str(error)
        return [
            (str(x.type), x.type.scalar, x.dtype, [n.value for n in x.shape], str(x.handle.dtype))
            for x in made
        ] + [(x.handle.data.dtype, x.handle.data.tolist()) for x in made]

    kinds = [*itertools.product(types, SHAPES), *NUMBERS]
    checked = 0
    for left, right in itertools.product(kinds, kinds):
        for how in ((True, True), (False, False, True, True)):
            for _ in range(2):  # decided, and remembered for other values
                a, b = (value(*kind) if isinstance(kind, tuple) else kind for kind in (left, right))
                expected = told(alike.__wrapped__, a, b, *how)
                assert told(alike, semantic, a, b, *how) == expected, (left, right, how)
                checked += isinstance(expected, list)
    assert checked > 2000
