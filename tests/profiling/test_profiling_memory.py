"""Peak memory, processes of their own, and what failures are called."""

import os
import signal
import time

import pytest
import torch
from torch import nn
from torch._dynamo.exc import Unsupported

from fpn_bench.errors import MeasurementError
from fpn_bench.profiling import Execution, measure_memory
from fpn_bench.profiling.failure import failure_of
from fpn_bench.profiling.isolation import isolated

MIB = 1 << 20


def _wide() -> nn.Module:
    """Its one intermediate map has 64 channels, its inputs and outputs few."""
    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.Sigmoid(), nn.Conv2d(64, 1, 1))


def test_memory_is_that_of_the_maps() -> None:
    """64 channels of 512x512 floats are 64 MiB; two such maps are alive at once, in training one more."""
    execution = Execution(threads=1)
    inference = measure_memory(_wide(), [(3, 512, 512)], execution)
    training = measure_memory(_wide(), [(3, 512, 512)], execution, "training")
    assert (inference.task, inference.method) == ("inference", "process_resident_set")
    assert 64 <= inference.rise_mib <= 2 * 64 + 48
    assert 2 * 64 <= training.rise_mib <= 4 * 64 + 48
    assert inference.peak_mib > inference.rise_mib + 100  # torch itself
    half = measure_memory(_wide(), [(3, 256, 512)], execution)
    assert 0.3 < half.rise_mib / inference.rise_mib < 0.8


def test_a_model_that_cannot_run_has_a_status() -> None:
    with pytest.raises(MeasurementError) as caught:
        measure_memory(_wide(), [(4, 8, 8)], Execution())
    assert caught.value.status == "failed"
    assert "channels" in caught.value.reason


@pytest.mark.gpu
def test_memory_on_a_gpu() -> None:
    inference = measure_memory(_wide(), [(3, 512, 512)], Execution("cuda"))
    training = measure_memory(_wide(), [(3, 512, 512)], Execution("cuda"), "training")
    assert inference.method == "cuda_allocator"
    assert 64 <= inference.rise_mib < training.rise_mib
    with pytest.raises(MeasurementError) as caught:
        measure_memory(_wide(), [(3, 1 << 15, 1 << 15)], Execution("cuda", batch=8))
    assert caught.value.status == "out_of_memory"
    assert measure_memory(_wide(), [(3, 64, 64)], Execution("cuda")).rise_mib < 64


def _threads_and_process() -> tuple[int, int]:
    return torch.get_num_threads(), os.getpid()


def _die(how: int) -> None:
    os.kill(os.getpid(), how)


def _leave(code: int) -> None:
    os._exit(code)


def _allocate(gib: int) -> None:
    torch.empty(gib << 28)


def test_isolated_is_another_process_with_our_threads() -> None:
    threads, process = isolated(_threads_and_process)
    assert threads == torch.get_num_threads()
    assert process != os.getpid()


@pytest.mark.parametrize(
    ("fn", "argument", "status", "reason"),
    [
        (_die, signal.SIGKILL, "killed", "SIGKILL: the system does so where memory runs out"),
        pytest.param(_die, signal.SIGSEGV, "killed", "SIGSEGV", marks=pytest.mark.slow),
        pytest.param(_leave, 3, "failed", "ended with 3", marks=pytest.mark.slow),
        (_allocate, 1 << 20, "out_of_memory", "allocate"),
        (int, "x", "failed", "invalid literal"),
    ],
)
def test_however_it_dies_there_is_a_status(fn: object, argument: object, status: str, reason: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        isolated(fn, argument)  # type: ignore[arg-type]
    assert caught.value.status == status
    assert reason in caught.value.reason


def test_isolated_gives_up() -> None:
    with pytest.raises(MeasurementError, match=r"timed out: no answer within 0\.5 s"):
        isolated(time.sleep, 60, timeout_s=0.5)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory"),
        (RuntimeError("\"max_pool2d\" not implemented for 'Half'"), "unsupported"),
        (NotImplementedError("Could not run 'torchvision::deform_conv2d'"), "unsupported"),
        (RuntimeError("mat1 and mat2 must have the same dtype, but got Half and Float"), "unsupported"),
        (RuntimeError("CUDA error: operation not permitted when stream is capturing"), "not_traceable"),
        (Unsupported("data-dependent control flow"), "not_traceable"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasGemmEx"), "unsupported"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "unsupported"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device_lost"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device_lost"),
        (ValueError("a\nb"), "failed"),
        (KeyError(), "failed"),
    ],
)
def test_failures_have_a_status_and_one_line(error: Exception, status: str) -> None:
    failure = failure_of(error)
    assert failure.status == status
    assert failure.reason
    assert "\n" not in str(failure)
    assert failure_of(failure) is failure
