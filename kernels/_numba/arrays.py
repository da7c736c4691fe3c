"""NumPy arrays inside compiled code, found by the address of their Python object.

What Python hands over of an array is one number. To read address, shape and strides of its data
from Python takes longer than a kernel needs for a small image; compiled code reads them where NumPy
keeps them, as extension modules do that were compiled against another NumPy.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import populate_array

WORD = ir.IntType(64)
# Bytes from the beginning of a NumPy array, behind what all Python objects begin with.
DATA, SHAPE, STRIDES = (object.__basicsize__ + field for field in (0, 16, 24))


class HeldArray(types.Type):
    """The address of the Python object of an array."""

    def __init__(self, dtype: str, axes: int, order: str) -> None:
        self.array = types.Array(from_dtype(np.dtype(dtype)), axes, order)
        super().__init__(name=f"held {self.array}")


@register_model(HeldArray)
class _HeldArrayModel(models.PrimitiveModel):
    def __init__(self, manager: Any, held: HeldArray) -> None:
        super().__init__(manager, held, WORD)


@intrinsic
def opened(typingctx: Any, arguments: Any) -> Any:
    """The tuple `arguments` with the arrays that it holds the addresses of."""
    kinds = [kind.array if isinstance(kind, HeldArray) else kind for kind in arguments]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [builder.extract_value(args[0], i) for i in range(len(kinds))]
        found = [
            _array(context, builder, held.array, value) if isinstance(held, HeldArray) else value
            for held, value in zip(arguments, values, strict=True)
        ]
        return context.make_tuple(builder, signature.return_type, found)

    return types.Tuple(kinds)(arguments), generate


def _array(context: Any, builder: Any, array: Any, address: Any) -> Any:
    def field(offset: int, kind: Any) -> Any:
        place = builder.add(address, ir.Constant(WORD, offset))
        return builder.load(builder.inttoptr(place, kind.as_pointer()))

    def numbers(offset: int) -> list[Any]:
        start = field(offset, WORD.as_pointer())
        places = [builder.gep(start, [ir.Constant(WORD, axis)]) for axis in range(array.ndim)]
        return [builder.load(place) for place in places]

    number = context.get_data_type(array.dtype)
    made = context.make_array(array)(context, builder)
    populate_array(
        made, field(DATA, number.as_pointer()), numbers(SHAPE), numbers(STRIDES),
        ir.Constant(WORD, context.get_abi_sizeof(number)), meminfo=None,
    )  # fmt: skip
    return made._getvalue()
