"""How a model is run: what is copied, cast, laid out, and put back."""

import contextlib

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fpn_bench.errors import InputError
from fpn_bench.profiling import Execution


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_runs_as_asked_and_gives_the_model_s_values(precision: str, memory_format: str) -> None:
    model = _model()
    execution = Execution(batch=2, precision=precision, memory_format=memory_format)  # type: ignore[arg-type]
    (images,) = execution.inputs([(3, 9, 7)])
    placed = execution.place(model)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert images.shape == (2, 3, 9, 7)
    assert {t.dtype for t in (images, *placed.parameters())} == {dtype}
    last = memory_format == "channels_last"
    assert images.is_contiguous(memory_format=torch.channels_last) == last
    assert placed[0].weight.is_contiguous(memory_format=torch.channels_last) == last
    with torch.no_grad():
        expected = model.eval()(images.float().contiguous())
    torch.testing.assert_close(execution.call(placed, images)().float(), expected, rtol=0.05, atol=0.05)


def test_the_model_is_left_alone() -> None:
    model = _model()
    Execution(precision="bf16", memory_format="channels_last").place(model)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())


def test_inputs_are_the_same_every_time() -> None:
    a, b = (Execution().inputs([(3, 4, 4), (8, 2, 2)]) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[0].std() > 0.5


def test_shared_parts_stay_shared() -> None:
    backbone, copies = nn.Conv2d(3, 4, 1), {}
    one, two = (Execution().place(nn.Sequential(backbone, nn.ReLU()), copies) for _ in range(2))
    assert one[0] is two[0] is not backbone


def test_compiled_is_compiled_at_once() -> None:
    execution = Execution(mode="compiled")
    placed, (images,) = execution.place(_model()), execution.inputs([(3, 9, 7)])
    torch.compiler.reset()
    call = execution.call(placed, images)
    compiled = counters["frames"]["ok"]
    with torch.no_grad():
        torch.testing.assert_close(call(), placed(images))
    assert counters["frames"]["ok"] == compiled > 0


@pytest.mark.slow
def test_the_tenth_of_a_kind_is_compiled_as_the_first() -> None:
    """torch gives up on a piece of code that it had to compile eight times."""
    execution = Execution(mode="compiled")
    torch.compiler.reset()
    for i in range(10):
        model = nn.Sequential(nn.Conv2d(3, 4 + i, 1), nn.ReLU())
        before = counters["frames"]["ok"]
        execution.call(execution.place(model), *execution.inputs([(3, 8, 8)]))
        assert counters["frames"]["ok"] == before + 1


def test_settings_are_put_back_also_after_an_error() -> None:
    before = (torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    with contextlib.suppress(KeyError), Execution(threads=1).settings():
        assert torch.get_num_threads() == 1
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert before == (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


def test_cold_caches_are_overwritten() -> None:
    assert Execution().between_calls() is None
    flush = Execution(cache="cold").between_calls()
    assert flush is not None
    flush()


def test_label_tells_any_two_apart() -> None:
    several = [
        Execution(),
        Execution(batch=2),
        Execution(precision="bf16"),
        Execution(memory_format="channels_last"),
        Execution(mode="compiled"),
        Execution(cache="cold"),
        Execution(threads=1),
    ]
    assert len({e.label for e in several}) == len(several)
    assert Execution(threads=1).label == "cpu-b1-fp32-contiguous-eager-warm-1t"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"batch": 0}, "batch to be a whole number of 1 or more, got 0"),
        ({"batch": True}, "batch to be a whole number of 1 or more, got True"),
        ({"threads": 0}, "threads to be a whole number of 1 or more, got 0"),
        ({"precision": "int8"}, "precision to be one of fp32, tf32, fp16, bf16, got 'int8'"),
        ({"memory_format": "nhwc"}, "contiguous, channels_last"),
        ({"mode": "jit"}, "eager, compiled, cuda_graph"),
        ({"cache": "hot"}, "warm, cold"),
        ({"precision": "tf32"}, "try fp32 or bf16"),
        ({"mode": "cuda_graph"}, "try eager or compiled"),
    ],
)
def test_bad_settings(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Execution(**arguments)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["eager", "compiled", "cuda_graph"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_on_a_gpu(mode: str, precision: str, cache: str) -> None:
    from fpn_bench.latency import measure_rounds

    execution = Execution("cuda", 2, precision, "channels_last", mode, cache)  # type: ignore[arg-type]
    model = _model()
    (images,) = execution.inputs([(3, 33, 47)])
    call = execution.call(execution.place(model), images)
    expected = model.eval()(images.float().cpu().contiguous())
    torch.testing.assert_close(call().float().cpu(), expected, rtol=0.05, atol=0.05)
    found = measure_rounds({"a": call, "b": call}, execution=execution, budget_s=0.1, baseline="a")
    assert not found.failures
    assert found.latencies["a"].telemetry.clock_mhz
