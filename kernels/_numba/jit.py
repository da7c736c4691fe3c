"""Compiled functions of a module: machine code by numba, kept on disk, called without numba.

    splat = Kernel("kernels.permutohedral.compiled", "splat")
    splat(first, last, values, rows, lanes)

numba takes most of a second of a new process before it calls what it has on disk: it imports the
rest of itself and registers all that it can compile. So it is imported to compile only. The machine
code of each kernel and each set of argument types is a file of its own, which LLVM (llvmlite) links
into the process in two milliseconds.

What that asks of a compiled function:

- It takes integers, floats, arrays and, behind those, tuples, of which only the lengths count: they
  are compiled in. It returns nothing, or an integer.
- It allocates nothing (`simd.scratch` is on the stack) and raises nothing, since both would call
  numba at run time. Compiling one that does fails, and says why.
"""

import contextlib
import ctypes
import importlib
import operator
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

from kernels._numba import code_files

# What a type of argument is: a tuple's length, a scalar's format, or dtype, axes and layout.
Kind: TypeAlias = int | str | tuple[str, int, str]
_Seen: TypeAlias = int | str | tuple[np.dtype[Any], int, int]  # the same, as it is soonest told
_Loaded: TypeAlias = tuple[struct.Struct, Callable[[bytes], int]]

_pointer_at = ctypes.c_void_p.from_address
_Function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)
_FLOATS: dict[type, str] = {float: "d", np.float64: "d", np.float32: "f"}
_SYMBOL = "kernel"  # what the function is called in its machine code


def across_forks(lock: Any) -> Any:
    """The lock, which no forked process finds held by a thread that it does not have."""
    if hasattr(os, "register_at_fork"):
        free = lock.release
        os.register_at_fork(before=lock.acquire, after_in_parent=free, after_in_child=free)
    return lock


_compiling = across_forks(threading.RLock())


class Call:
    """A call of a kernel with its arguments, which it keeps alive."""

    __slots__ = ("arguments", "function", "packed")

    def __init__(
        self, function: Callable[[bytes], int], packed: bytes, arguments: tuple[Any, ...]
    ) -> None:
        self.function, self.packed, self.arguments = function, packed, arguments

    def __call__(self) -> int:
        return self.function(self.packed)


class Kernel:
    """A compiled function, called with the GIL released.

    `module` is where it is defined, imported only to compile it; `returns` says that it returns an
    integer, and not nothing.
    """

    def __init__(self, module: str, name: str, returns: bool = False) -> None:
        self.module, self.name, self.returns = module, name, returns
        self._seen: dict[tuple[_Seen, ...], _Loaded] = {}
        self._loaded: dict[tuple[Kind, ...], _Loaded] = {}

    def __call__(self, *args: Any) -> int:
        """Call it; 0 where it returns nothing."""
        return self.calls([()], args)[0]()

    def calls(self, ranges: Iterable[tuple[Any, ...]], args: Sequence[Any] = ()) -> list[Call]:
        """For each r of `ranges`, the call of `(*r, *args)`: for any thread, any number of times.

        It sees what the arrays hold then.
        """
        shared, shared_numbers = _described(args)
        calls = []
        for each in ranges:
            own, numbers = _described(each)
            kinds = own + shared
            layout, function = self._seen.get(kinds) or self._load(kinds)
            packed = layout.pack(*numbers, *shared_numbers)
            calls.append(Call(function, packed, (each, args)))
        return calls

    def _load(self, seen: tuple[_Seen, ...]) -> _Loaded:
        """Link the machine code for arguments of these kinds, compiled if there is none on disk."""
        kinds = tuple(map(_kind, seen))
        with _compiling:
            if kinds not in self._loaded:
                named = f"{self.module}.{self.name}"
                code = code_files.read_or_make(named, repr(kinds), partial(self._compile, kinds))
                layout = struct.Struct("@" + "".join(map(_format, kinds)))
                self._loaded[kinds] = layout, _linked(code)
            self._seen[seen] = self._loaded[kinds]
            return self._seen[seen]

    def _compile(self, kinds: tuple[Kind, ...]) -> bytes:
        """Machine code that takes a pointer to the arguments, one after another as C lays them."""
        from numba import cfunc, types

        from kernels._numba.arrays import HeldArray, opened

        scalars = {"q": types.int64, "f": types.float32, "d": types.float64}
        constants = tuple((0,) * kind for kind in kinds if isinstance(kind, int))
        given = types.Tuple([
            scalars[kind] if isinstance(kind, str) else HeldArray(*kind)
            for kind in kinds
            if not isinstance(kind, int)
        ])  # fmt: skip

        def entry(pointer: Any) -> Any:
            return function(*opened(pointer[0]), *constants)

        result = types.int64 if self.returns else types.void
        signature = result(types.CPointer(given))
        with _compiled_without_checks():
            function = getattr(importlib.import_module(self.module), self.name)
            compiled = cfunc(signature, _nrt=False, error_model="numpy")(entry)
        return _machine_code(compiled.inspect_llvm(), compiled.native_name, self.name)


def address(array: np.ndarray[Any, Any]) -> int:
    """Where the data is. `array.ctypes.data` tells too, in ten times the time.

    It is the first field of a NumPy array, behind what all Python objects begin with.
    """
    return _pointer_at(id(array) + object.__basicsize__).value or 0


def _described(values: Sequence[Any]) -> tuple[tuple[_Seen, ...], list[Any]]:
    """The kinds of arguments, and the numbers that lie in memory for them; of an array, where its
    Python object is."""
    kinds: list[_Seen] = []
    numbers: list[Any] = []
    for value in values:
        kind = type(value)
        if kind is np.ndarray:
            kinds.append((value.dtype, value.ndim, value.flags.num & 3))
            numbers.append(id(value))
        elif kind is tuple:
            kinds.append(len(value))
        elif kind in _FLOATS:
            kinds.append(_FLOATS[kind])
            numbers.append(value)
        else:
            kinds.append("q")
            numbers.append(operator.index(value))
    return tuple(kinds), numbers


def _kind(seen: _Seen) -> Kind:
    if not isinstance(seen, tuple):
        return seen
    dtype, axes, contiguous = seen  # NumPy's flags: 1 in C's order, 2 in Fortran's
    return dtype.str, axes, "ACFC"[contiguous]  # with the byte order


def _format(kind: Kind) -> str:
    if isinstance(kind, int):
        return ""
    return kind if isinstance(kind, str) else "q"


@contextlib.contextmanager
def _compiled_without_checks() -> Iterator[None]:
    """numba without the settings for debugging that a kernel cannot have.

    NUMBA_BOUNDSCHECK makes every function raise, NUMBA_DISABLE_JIT leaves it to Python. They may be
    set for other code than this, which waits meanwhile.
    """
    from numba.core import config
    from numba.core.compiler_lock import global_compiler_lock

    with global_compiler_lock:
        config.reload_config()  # here, so that the compiler does not
        kept = config.BOUNDSCHECK, config.DISABLE_JIT
        config.BOUNDSCHECK, config.DISABLE_JIT = 0, 0
        try:
            yield
        finally:
            config.BOUNDSCHECK, config.DISABLE_JIT = kept


def _linked(code: bytes) -> Callable[[bytes], int]:
    """Put machine code into this process."""
    import llvmlite.binding as llvm

    machine = _target().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    function = _Function(engine.get_function_address(_SYMBOL))
    function.engine = engine  # type: ignore[attr-defined]  # it owns the code
    return function


def _machine_code(assembly: str, symbol: str, name: str) -> bytes:
    """Translate LLVM's assembly, as numba optimised it, as numba would translate it."""
    import llvmlite.binding as llvm
    from numba.core import codegen, config

    module = llvm.parse_assembly(assembly)
    unknown = sorted(
        function.name
        for function in module.functions
        if function.is_declaration and function.name.startswith(("Py", "NRT_", "numba"))
    )
    if unknown:
        raise RuntimeError(
            f"the kernel {name} would call numba and Python at run time ({', '.join(unknown)}): "
            "it must neither allocate nor raise, and NUMBA_OPT must not be 0"
        )
    module.get_function(symbol).name = _SYMBOL
    x86 = llvm.Target.from_default_triple().name.startswith("x86")
    features = config.CPU_FEATURES
    machine = _target().create_target_machine(
        cpu=config.CPU_NAME or llvm.get_host_cpu_name(),
        features=codegen.get_host_cpu_features() if features is None else features,
        opt=int(config.OPT),
        reloc="static" if x86 else "default",
        codemodel="jitdefault",
        jit=True,
    )
    return bytes(machine.emit_object(module))


@cache
def _target() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(llvm.get_process_triple())
