"""Triton's interpreter without the work that it repeats.

At every launch, and at every call of one jitted function by another, the interpreter searches the modules of Triton's
language and replaces their functions by its own. Within this context they are replaced once, and stay so: kernels
compute the same, several times as fast.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import triton.language as tl
from triton.runtime import interpreter


@contextlib.contextmanager
def quick_interpreter() -> Iterator[None]:
    """Nothing compiles kernels in this process within the context, as nothing does where they are interpreted."""
    replaced = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    try:
        with mock.patch.object(interpreter, "_patch_lang", lambda function: interpreter._LangPatchScope()):
            yield
    finally:
        replaced.restore()
