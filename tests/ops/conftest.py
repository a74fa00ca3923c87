"""What every op test runs under."""

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or deterministic mode refuses products on a GPU


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where Triton kernels run: in the interpreter on a CPU, or compiled on a GPU."""
    if request.param == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels are compiled for the GPU in this process")
    return request.param


@pytest.fixture(autouse=True, scope="session")
def interpreter_computes_as_a_gpu(fast_interpreter: None) -> Iterator[None]:
    """Kernels that are interpreted round as compiled ones do."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from gpu_arithmetic import gpu_arithmetic  # imports triton, which not every machine has

    with gpu_arithmetic():
        yield


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Memory that PyTorch hands out uninitialised is filled with NaN, so that reading it before writing shows."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_reading_back() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context in which waiting for the GPU is an error."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it finds most, not all
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context
