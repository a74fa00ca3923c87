"""What the machine is, and that finding it out disturbs nothing."""

import pytest
import torch

from leyden.core import device
from leyden.core.device import (
    compute_dtype,
    default_device,
    find_device,
    keep_freed_memory,
    matmul_flops_per_second,
    narrow_products_are_slow,
)
from leyden.core.errors import UserError

CPU = torch.device("cpu")


def test_measuring_leaves_the_random_numbers_of_a_run_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert matmul_flops_per_second.__wrapped__(torch.float32, "cpu", 64) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rate_is_measured_once() -> None:
    assert matmul_flops_per_second(torch.float32, "cpu", 48) == matmul_flops_per_second(torch.float32, "cpu", 48)


@pytest.mark.parametrize(("bf16", "dtype"), [(3e11, torch.bfloat16), (1.1e11, torch.float32), (1e10, torch.float32)])
def test_a_cpu_computes_in_what_multiplies_faster(
    monkeypatch: pytest.MonkeyPatch, bf16: float, dtype: torch.dtype
) -> None:
    rates = {torch.bfloat16: bf16, torch.float32: 1e11}
    monkeypatch.setattr(device, "matmul_flops_per_second", rates.__getitem__)
    chosen, reason = compute_dtype(CPU)
    assert chosen == dtype
    assert reason.startswith(str(dtype).removeprefix("torch."))
    assert f"{bf16 / 1e9:.0f} GFLOP/s in bfloat16, 100 in float32" in reason


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bfloat16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert compute_dtype(torch.device("cuda", 0))[0] == dtype


def test_without_a_gpu_the_cpu_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device() == CPU


def test_keeping_freed_memory_says_whether_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mallopt(name: int, value: int) -> int:
        asked.append((name, value))
        return 1

    class Library:
        pass

    library = Library()
    monkeypatch.setattr(device.ctypes, "CDLL", lambda _: library)
    keep = keep_freed_memory.__wrapped__
    monkeypatch.setattr(device.sys, "platform", "linux")
    assert keep() is False  # a C library without mallopt, such as musl
    library.mallopt = mallopt  # pyright: ignore[reportAttributeAccessIssue]
    assert keep() is True
    assert len(asked) == 3
    assert (-1, -1) in asked  # the trim threshold: with any finite one, a step above it faults in all of its memory
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert keep() is False


def test_a_device_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu") == CPU
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    assert find_device(None) == default_device()
    for wrong in ("cuda:2", "tpu", "", "meta", "cuda:x"):
        with pytest.raises(UserError, match="this machine has cpu, cuda, cuda:0, cuda:1"):
            find_device(wrong)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"--device cuda: this machine has cpu\."):
        find_device("cuda")


@pytest.mark.parametrize(("bf16", "slow"), [(3e11, False), (6e10, False), (4e10, True), (1e9, True)])
def test_products_of_16_bit_numbers_are_slow_where_the_processor_has_none(
    monkeypatch: pytest.MonkeyPatch, bf16: float, slow: bool
) -> None:
    rates = {torch.bfloat16: bf16, torch.float32: 1e11}
    monkeypatch.setattr(device, "matmul_flops_per_second", lambda dtype, size: rates[dtype])
    assert (narrow_products_are_slow(CPU) is not None) == slow
    assert narrow_products_are_slow(torch.device("cuda", 0)) is None


def test_a_measurement_of_slow_products_ends_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 1))
    monkeypatch.setattr(device.time, "perf_counter", lambda: 0.75 * next(clock))
    assert matmul_flops_per_second.__wrapped__(torch.float32, "cpu", 8) == 2 * 8**3 / 0.75
    assert next(clock) == 4
