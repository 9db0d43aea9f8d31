"""What Triton's JIT would compile for a launch, as plain values that travel between processes.

Which arguments become types, which constants and which are known to be multiples of 16 is decided
by the JIT's own functions; they are private to Triton, and the same in 3.6 and 3.9.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from fit_kernels.launch import Launch, compile_options

# Specialisation is the same for every NVIDIA GPU; the binder wants to know one.
_ANY_GPU = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True, order=True)
class Configuration:
    """One thing to compile; two launches with equal ones share their machine code.

    Attributes:
        kernel: module and name of the `triton.jit` function, below `fit_kernels.fused`.
        arguments: names and types of the run-time arguments; ":16" where 16 divides them.
        constants: names and values fixed at compile time.
        num_warps, num_stages: how it is compiled.
        signature, constexprs, attributes: the same as `ASTSource` takes it.
    """

    kernel: str
    arguments: str
    constants: str
    num_warps: int
    num_stages: int
    signature: dict[str, str] = field(compare=False, repr=False)
    constexprs: dict[tuple[int, ...], Any] = field(compare=False, repr=False)
    attributes: dict[tuple[int, ...], Any] = field(compare=False, repr=False)

    @property
    def function(self) -> JITFunction[Any]:
        """The `triton.jit` function."""
        module, _, name = self.kernel.rpartition(".")
        return getattr(importlib.import_module(f"fit_kernels.fused.{module}"), name)

    @property
    def identity(self) -> tuple[str, str, str, int, int]:
        """What tells it from others, as the table keeps it."""
        return self.kernel, self.arguments, self.constants, self.num_warps, self.num_stages


def specialise(launch: Launch) -> Configuration:
    """Give what the JIT would compile for a launch.

    Raises:
        ValueError: kernels run in Triton's interpreter here, which compiles nothing.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise ValueError(f"{kernel} is interpreted; unset TRITON_INTERPRET to compile")
    options = compile_options(launch.num_warps, launch.num_stages) | launch.constants
    bound, specialised, _ = _binder(kernel)(*launch.arguments, **options)
    _, signature, constexprs, attributes = kernel._pack_args(
        make_backend(_ANY_GPU), options, bound, specialised, None
    )
    attributes = {path: found for path, found in attributes.items() if found}
    names = list(signature)
    constants = {names[path[0]]: value for path, value in constexprs.items()}
    return Configuration(
        kernel=f"{kernel.fn.__module__.removeprefix('fit_kernels.fused.')}.{kernel.fn.__name__}",
        arguments=" ".join(
            f"{name}={kind}{':16' if (index,) in attributes else ''}"
            for index, (name, kind) in enumerate(signature.items())
            if kind != "constexpr"
        ),
        constants=" ".join(f"{name}={value}" for name, value in constants.items()),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        signature=signature,
        constexprs=constexprs,
        attributes=attributes,
    )


@functools.cache
def _binder(kernel: JITFunction[Any]) -> Callable[..., Any]:
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(_ANY_GPU))


@functools.cache
def source_hash(kernel: JITFunction[Any]) -> str:
    """Identify the text of a kernel and of all it calls and reads, whatever its comments say.

    Triton's own key also holds line numbers, which would make every edit above a kernel count.
    """
    seen: dict[str, str] = {}
    _collect_sources(kernel, seen)
    text = "\n".join(f"{name}\n{seen[name]}" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _collect_sources(kernel: JITFunction[Any], seen: dict[str, str]) -> None:
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    if name in seen:
        return
    tree = ast.parse(kernel.src)
    seen[name] = ast.unparse(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in kernel.fn.__globals__:
            value = kernel.fn.__globals__[node.id]
            if isinstance(value, JITFunction):
                _collect_sources(value, seen)
            elif isinstance(value, triton.language.constexpr):
                seen[node.id] = str(value.value)
