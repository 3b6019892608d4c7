"""Compilation of a launch for a GPU that need not be present.

Tests use it, and it lets one count what a kernel costs.
"""

from collections.abc import Callable

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gms_fast.kernels import launch as launchers
from gms_fast.kernels.launch import Launch

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def launches(call: Callable[[], object]) -> list[Launch]:
    """Return the kernel launches that call() makes, without running them."""
    found: list[Launch] = []
    run, launchers._run = launchers._run, lambda launch, like: found.append(launch)
    try:
        call()
    finally:
        launchers._run = run
    return found


def compile_ahead(launch: Launch, architecture: int) -> object:
    """Return the kernel compiled for a compute capability, e.g. 90.

    Its `asm` has "ttgir", "ptx" and "cubin". It is compiled as a launch compiles it, except that integers equal to 1
    stay arguments.
    """
    names = launch.kernel.arg_names
    arguments = dict(zip(names, launch.arguments, strict=False))
    signature = {name: _type(arguments[name]) if name in arguments else "constexpr" for name in names}
    absent = {path: None for i, name in enumerate(names) for path in _absent(arguments.get(name, ()), (i,))}
    constants = {(names.index(name),): value for name, value in launch.switches.items()}
    aligned = [path for i, name in enumerate(names) for path in _aligned(arguments.get(name, ()), (i,))]
    attributes = {path: [["tt.divisibility", 16]] for path in aligned}
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs={**absent, **constants}, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options)


def _type(value: object):
    if isinstance(value, tuple):
        types = [_type(v) for v in value]
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    if value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def _absent(value: object, path: tuple[int, ...]) -> list[tuple[int, ...]]:
    if isinstance(value, tuple):
        return [found for i, v in enumerate(value) for found in _absent(v, (*path, i))]
    return [path] if value is None else []


def _aligned(value: object, path: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the paths of aligned pointers, and of the number of elements if 16 divides it."""
    if isinstance(value, tuple):
        return [found for i, v in enumerate(value) for found in _aligned(v, (*path, i))]
    whole = len(path) == 1 and isinstance(value, int) and value % 16 == 0
    return [path] if whole or (isinstance(value, torch.Tensor) and value.data_ptr() % 16 == 0) else []
