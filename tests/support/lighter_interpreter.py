"""Triton's interpreter without what takes most of its time and says nothing at the tests' sizes.

What a kernel computes stays the interpreter's own: its functions decide on types and shapes, and
its builder calls numpy. What is left out is deciding the same again at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def lighten() -> None:
    """Change this process, which does nothing but interpret, for good.

    The interpreter computes every sum and product of integers again in 64 bits to assert that it
    does not overflow, which indices of some thousands cannot; makes a dictionary of all types to
    look one up; and swaps the language's functions for its own at every call of a function, and
    back.
    """
    from triton.runtime import interpreter

    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype, lambda t: str(t.scalar))
    interpreter._patch_lang = _remembered(interpreter._patch_lang, lambda function: function)
    interpreter._LangPatchScope.restore = lambda self: None
    _call_functions_directly(interpreter)
    _check_shapes_once()
    _compare_types_by_name()
    _check_width_directly(interpreter.TensorHandle, interpreter._validate_np_data_size)
    _decide_once(interpreter.interpreter_semantic)


def _remembered(function: Callable[[Any], Any], key: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function` of one argument, called once for each key."""
    known: dict[Any, Any] = {}

    def look_up(argument: Any) -> Any:
        name = key(argument)
        if name not in known:
            known[name] = function(argument)
        return known[name]

    return look_up


def _call_functions_directly(interpreter: Any) -> None:
    """A function of the language without a wrapper that asks whether it is called in a kernel."""
    semantic = interpreter.interpreter_semantic

    def patch(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        function = getattr(member, "__wrapped__", member)

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        call.__wrapped__ = function  # type: ignore[attr-defined]
        scope.set_attr(owner, name, call)

    interpreter._patch_attr = patch


def _check_shapes_once() -> None:
    """Check and wrap each shape once, not for every value that has it."""
    import triton.language.core as tl

    def plain(shape: Any) -> tuple[int, ...]:
        values = shape.values if isinstance(shape, tl.tuple) else tl._unwrap_if_constexpr(shape)
        return tuple([n.value if isinstance(n, tl.constexpr) else n for n in values])

    def checked(shape: Any) -> SimpleNamespace:
        made = SimpleNamespace(types={})
        check(made, tl.int32, shape)
        made.wrapped = tl.tuple([tl.constexpr(n) for n in plain(shape)])
        made.count = tl.constexpr(made.numel)
        made.shape.known = made.wrapped.known = made
        return made

    check, shapes = tl.block_type.__init__, _remembered(checked, plain)
    scalar = SimpleNamespace(count=tl.constexpr(1), wrapped=tl.tuple([]))

    def make_type(self: Any, element_ty: Any, shape: Any) -> None:
        known = vars(shape).get("known") if shape.__class__ is tl.tuple else None
        self.known = known = known or shapes(shape)
        self.element_ty, self.shape, self.numel = element_ty, known.shape, known.numel
        self.told_by = element_ty.name, id(known)

    def of_another_element(self: Any, element_ty: Any) -> Any:
        types = self.known.types
        if element_ty.name not in types:
            types[element_ty.name] = tl.block_type(element_ty, self.shape)
        return types[element_ty.name]

    def make_value(self: Any, handle: Any, type: Any) -> None:
        known = type.known if type.__class__ is tl.block_type else scalar
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = known.count, known.wrapped

    tl.block_type.__init__ = make_type
    tl.block_type.name = property(lambda self: f"<{self.shape}, {self.element_ty}>")
    tl.block_type.with_element_ty = of_another_element
    tl.block_type.to_ir = lambda self, builder: self
    tl.dtype.told_by = property(lambda self: self.name)
    tl.block_type.told_by = None  # each has its own
    tl.tensor.__init__ = make_value


def _compare_types_by_name() -> None:
    """Types and values are what they are, more often than constants that stand for them."""
    import triton.language.core as tl

    compare, unwrap = tl.dtype.__eq__, tl._unwrap_if_constexpr
    nothing_to_unwrap = {tl.tensor, tl.dtype, tl.block_type, tl.pointer_type, int, float, bool, str}

    def unwrapped(value: Any) -> Any:
        if value.__class__ is tl.constexpr:
            return value.value
        return value if value.__class__ in nothing_to_unwrap else unwrap(value)

    def equal(self: Any, other: Any) -> bool:
        return self.name == other.name if other.__class__ is tl.dtype else compare(self, other)

    tl._unwrap_if_constexpr = unwrapped
    tl.dtype.__eq__ = equal


def _check_width_directly(handle: Any, fits: Callable[[Any, Any], bool]) -> None:
    """numpy's data fit into the type of each value, asked in one step where they obviously do."""
    import triton.language.core as tl

    complain = handle.__post_init__

    def make(self: Any, data: Any, dtype: Any, attr: dict[str, Any] | None = None) -> None:
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr
        if dtype.__class__ is not tl.dtype or 8 * data.itemsize > dtype.primitive_bitwidth:
            complain(self)

    handle.__init__ = make


def _decide_once(semantic: Any) -> None:
    """Decide once how operands of each two types are made alike, and make each constant once."""
    import numbers

    import triton.language.core as tl

    kind_of_semantic = type(semantic)
    make_alike = semantic.binary_op_type_checking_impl
    make_constant = semantic.scalar_constant
    decided: dict[Any, Any] = {}
    constants: dict[Any, Any] = {}

    def constant(self: Any, value: Any, dtype: Any) -> Any:
        key = value.__class__, value, dtype.name
        if key not in constants:
            made = make_constant(value, dtype)
            made.handle.data.flags.writeable = False  # as all share it
            constants[key] = made
        return constants[key]

    def kind(operand: Any) -> Any:
        if operand.__class__ is tl.tensor:
            return operand.type.told_by
        return operand.__class__, operand

    def way(given: Any, made: Any) -> Callable[[Any], Any] | None:
        """How `made` came of `given`, for others of that type; None if Triton is to be asked."""
        if made is given:
            return lambda value: value
        if isinstance(given, numbers.Number):
            made.handle.data.flags.writeable = False
            return lambda value: made
        type, shape, builder = made.type, tuple(n.value for n in made.shape), semantic.builder
        if given.shape == made.shape:
            return lambda value: semantic.cast(value, type.scalar)
        if given.dtype != made.dtype:
            return None
        if not given.type.is_block():
            return lambda value: tl.tensor(builder.create_splat(type, value.handle), type)
        if len(given.shape.values) == len(shape):
            return lambda value: tl.tensor(builder.create_broadcast(value.handle, shape), type)
        return None

    def alike(self: Any, lhs: Any, rhs: Any, *how: Any) -> tuple[Any, Any]:
        key = kind(lhs), kind(rhs), how
        ways = decided.get(key)
        if ways is None:
            made = make_alike(lhs, rhs, *how)
            decided[key] = tuple(map(way, (lhs, rhs), made))
            return made
        left, right = ways
        if left is None or right is None:
            return make_alike(lhs, rhs, *how)
        return left(lhs), right(rhs)

    alike.__wrapped__ = make_alike  # type: ignore[attr-defined]
    kind_of_semantic.scalar_constant = constant
    kind_of_semantic.binary_op_type_checking_impl = alike
