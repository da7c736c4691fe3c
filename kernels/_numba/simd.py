"""Rows of float32 as vectors inside numba functions.

Numba unrolls a short loop over channels into scalar instructions whenever two arrays might
overlap. These few functions put a whole row into vector registers instead:

    total = simd.zero(lanes)
    for k in range(corners):
        total = simd.add_scaled(total, weight[k], simd.load(rows, corner[k], lanes))
    simd.store(output, i, total)

`lanes` is any tuple: its length, known to the compiler, is the number of floats in a vector, a
multiple of 4 and the width of the arrays. A vector is kept as chunks of 8 floats, the last of 4 if
need be, since LLVM takes vectors apart between basic blocks if their size is not a power of two.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import populate_array

CHUNK, LEAST_CHUNK = 8, 4
CACHE_LINE = 64  # bytes
FLOAT, INT, BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)
CONTRACT = ("contract",)  # allows fused multiply-add
SMALLEST = -80.0  # far from subnormal numbers, which take a processor twice as long or worse
EXP2 = [math.log(2) ** k / math.factorial(k) for k in range(7)]  # 2^x on [-1/2, 1/2] to 2e-7


class Vector(types.Type):
    """`lanes` float32 values in registers."""

    def __init__(self, lanes: int) -> None:
        last = [LEAST_CHUNK] * (lanes % CHUNK // LEAST_CHUNK)
        self.chunks = [ir.VectorType(FLOAT, n) for n in [CHUNK] * (lanes // CHUNK) + last]
        super().__init__(name=f"float32x{lanes}")


@intrinsic
def scratch(typingctx: Any, dtype: Any, lanes: Any) -> Any:
    """An unset array of `len(lanes)` numbers, on the stack until the compiled function returns."""
    return _stack_array(dtype, lanes)


@intrinsic
def scratch_table(typingctx: Any, dtype: Any, rows: Any, lanes: Any) -> Any:
    """An unset array `[len(rows), len(lanes)]`, as `scratch`."""
    return _stack_array(dtype, rows, lanes)


def _stack_array(dtype: Any, *lengths: Any) -> Any:
    """What an intrinsic returns that makes an array of such a shape."""
    array = types.Array(dtype.dtype, len(lengths), "C")
    shape = [length.count for length in lengths]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.get_data_type(array.dtype)
        size = context.get_abi_sizeof(number)
        start = cgutils.alloca_once(builder, ir.ArrayType(number, math.prod(shape)))
        counts = [context.get_constant(types.intp, count) for count in shape]
        steps = [size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        strides = [context.get_constant(types.intp, step) for step in steps]
        made = context.make_array(array)(context, builder)
        data = builder.bitcast(start, number.as_pointer())
        itemsize = context.get_constant(types.intp, size)
        populate_array(made, data, shape=counts, strides=strides, itemsize=itemsize, meminfo=None)
        return made._getvalue()

    return array(dtype, *lengths), generate


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.LiteralStructType(vector.chunks))


@intrinsic
def zero(typingctx: Any, lanes: Any) -> Any:
    """A vector of zeros."""
    vector = Vector(lanes.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _pack(builder, [ir.Constant(chunk, None) for chunk in vector.chunks])

    return vector(lanes), generate


@intrinsic
def load(typingctx: Any, rows: Any, row: Any, lanes: Any) -> Any:
    """Row `row` of the contiguous float32 array `rows` `[R, lanes]`."""
    vector = Vector(lanes.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = _pointers(context, builder, signature.args[0], args[0], args[1], vector.chunks)
        return _pack(builder, [builder.load(pointer, align=4) for pointer in pointers])

    return vector(rows, types.intp, lanes), generate


@intrinsic
def store(typingctx: Any, rows: Any, row: Any, vector: Any) -> Any:
    """rows[row] = vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = _pointers(context, builder, signature.args[0], args[0], args[1], vector.chunks)
        for pointer, chunk in zip(pointers, _chunks(builder, args[2]), strict=True):
            builder.store(chunk, pointer, align=4)
        return context.get_dummy_value()

    return types.void(rows, types.intp, vector), generate


@intrinsic
def store_unless(typingctx: Any, rows: Any, row: Any, none: Any, spare: Any, vector: Any) -> Any:
    """rows[row] = vector, or spare = vector if row is `none`; without a branch."""

    vector_type = vector

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows, row, none, spare, vector = args
        index = ir.Constant(row.type, 0)
        pointers = _pointers(context, builder, signature.args[0], rows, row, vector_type.chunks)
        others = _pointers(context, builder, signature.args[3], spare, index, vector_type.chunks)
        away = builder.icmp_signed("==", row, none)
        for pointer, other, chunk in zip(pointers, others, _chunks(builder, vector), strict=True):
            builder.store(chunk, builder.select(away, other, pointer), align=4)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, spare, vector), generate


@intrinsic
def prefetch(typingctx: Any, rows: Any, row: Any, lanes: Any) -> Any:
    """Ask for row `row` to be brought into the cache, to be written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        chunks = Vector(lanes.count).chunks
        start = _pointers(context, builder, signature.args[0], args[0], args[1], chunks)[0]
        start = builder.bitcast(start, BYTE.as_pointer())
        for line in range(0, 4 * lanes.count + CACHE_LINE - 1, CACHE_LINE):
            address = builder.gep(start, [INT(min(line, 4 * lanes.count - 1))])
            _call(builder, "prefetch.p0", ir.VoidType(), [address, INT(1), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(rows, types.intp, lanes), generate


@intrinsic
def add_scaled(typingctx: Any, total: Any, weight: Any, vector: Any) -> Any:
    """total + weight * vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def one(old: Any, chunk: Any) -> Any:
            scaled = builder.fmul(_broadcast(builder, args[1], chunk), chunk, flags=CONTRACT)
            return builder.fadd(old, scaled, flags=CONTRACT)

        return _each(builder, one, args[0], args[2])

    return vector(vector, types.float32, vector), generate


@intrinsic
def softmax2(typingctx: Any, vector: Any) -> Any:
    """2^vector, divided by its sum. What is below 2^SMALLEST of the largest becomes zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        top = _reduce(builder, "fmax", args[0])

        def power(chunk: Any) -> Any:
            return _exp2(builder, builder.fsub(chunk, _broadcast(builder, top, chunk)))

        values = _each(builder, power, args[0])
        total = _reduce(builder, "fadd", values)
        share = builder.fdiv(ir.Constant(FLOAT, 1.0), total)
        return _each(
            builder, lambda chunk: builder.fmul(chunk, _broadcast(builder, share, chunk)), values
        )

    return vector(vector), generate


def _exp2(builder: Any, power: Any) -> Any:
    """2^power for power <= 0: a polynomial, and the whole part put into the exponent's bits."""
    floats, lanes = power.type, power.type.count
    ints = ir.VectorType(INT, lanes)

    def constant(number: float) -> Any:
        return ir.Constant(floats, [number] * lanes)

    counts = builder.fcmp_ordered(">", power, constant(SMALLEST))
    power = builder.select(counts, power, constant(SMALLEST))
    whole = _call(builder, f"rint.v{lanes}f32", floats, [power])
    rest = builder.fsub(power, whole)
    value = constant(EXP2[-1])
    for coefficient in reversed(EXP2[:-1]):
        scaled = builder.fmul(value, rest, flags=CONTRACT)
        value = builder.fadd(scaled, constant(coefficient), flags=CONTRACT)
    biased = builder.add(builder.fptosi(whole, ints), ir.Constant(ints, [127] * lanes))
    bits = builder.shl(biased, ir.Constant(ints, [23] * lanes))
    value = builder.fmul(value, builder.bitcast(bits, floats))
    return builder.select(counts, value, ir.Constant(floats, None))


def _reduce(builder: Any, operation: str, vector: Any) -> Any:
    """The sum ("fadd") or the largest ("fmax") of all lanes: chunk with chunk, then of the last."""
    first, *chunks = _chunks(builder, vector)
    floats = first.type
    for chunk in chunks:
        chunk = _widened(builder, chunk, floats.count, -math.inf if operation == "fmax" else 0.0)
        if operation == "fadd":
            first = builder.fadd(first, chunk)
        else:
            larger = f"maxnum.v{floats.count}f32"
            first = _call(builder, larger, floats, [first, chunk], ("nnan",))
    name = f"vector.reduce.{operation}.v{floats.count}f32"
    if operation == "fadd":
        return _call(builder, name, FLOAT, [ir.Constant(FLOAT, 0.0), first], ("reassoc",))
    return _call(builder, name, FLOAT, [first], ("nnan",))


def _widened(builder: Any, chunk: Any, lanes: int, filling: float) -> Any:
    """The chunk with `filling` behind it, up to so many lanes."""
    count = chunk.type.count
    if count == lanes:
        return chunk
    others = ir.Constant(chunk.type, [filling] * count)
    mask = ir.Constant(ir.VectorType(INT, lanes), [min(i, count) for i in range(lanes)])
    return builder.shuffle_vector(chunk, others, mask)


def _each(builder: Any, function: Callable[..., Any], *vectors: Any) -> Any:
    chunks = [_chunks(builder, vector) for vector in vectors]
    return _pack(builder, [function(*together) for together in zip(*chunks, strict=True)])


def _chunks(builder: Any, vector: Any) -> list[Any]:
    return [builder.extract_value(vector, i) for i in range(len(vector.type.elements))]


def _pack(builder: Any, chunks: list[Any]) -> Any:
    vector = ir.Constant(ir.LiteralStructType([chunk.type for chunk in chunks]), ir.Undefined)
    for i, chunk in enumerate(chunks):
        vector = builder.insert_value(vector, chunk, i)
    return vector


def _broadcast(builder: Any, scalar: Any, chunk: Any) -> Any:
    """A chunk like this one, with the scalar in all lanes."""
    undefined = ir.Constant(chunk.type, ir.Undefined)
    single = builder.insert_element(undefined, scalar, INT(0))
    everywhere = ir.Constant(ir.VectorType(INT, chunk.type.count), None)
    return builder.shuffle_vector(single, undefined, everywhere)


def _pointers(
    context: Any, builder: Any, kind: Any, rows: Any, row: Any, chunks: Sequence[Any]
) -> list[Any]:
    """Pointers to the chunks of row `row` of the array `rows` of this type."""
    array = context.make_array(kind)(context, builder, rows)
    width = sum(chunk.count for chunk in chunks)
    start = builder.gep(array.data, [builder.mul(row, ir.Constant(row.type, width))])
    pointers = []
    for i, chunk in enumerate(chunks):
        place = builder.gep(start, [INT(CHUNK * i)])
        pointers.append(builder.bitcast(place, chunk.as_pointer()))
    return pointers


def _call(builder: Any, name: str, result: Any, args: Any, flags: Any = ()) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    function = builder.module.globals.get(f"llvm.{name}")
    if function is None:
        function = ir.Function(builder.module, kind, f"llvm.{name}")
    return builder.call(function, args, fastmath=flags)
