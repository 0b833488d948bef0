"""bf16 autocast on a processor without bf16 instructions, against torch's own and float64."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltkd import precision
from ltkd.data import load
from ltkd.precision import Bf16ByFp32, autocast
from ltkd.runs import run
from ltkd.teacher import Teacher
from ltkd.train import Trainer, initial_model, initial_objective, predict

CPU = torch.device("cpu")
HALF = 2**-8  # bf16 has eight significant bits: to round moves a number by at most this part


def layers():
    torch.manual_seed(0)
    yield nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.randn(4, 5, 9, 9)
    yield nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False), torch.randn(4, 6, 8, 8)
    yield nn.Linear(11, 3), torch.randn(4, 11)


def through(layer, x, mode):
    """Output, and gradients of the input and of the parameters, for one fixed outer gradient."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), mode:
        out = layer(x)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out.backward(outer)
    return [out, x.grad, *(p.grad for p in layer.parameters())]


def as_double(layer, x):
    """The same in float64, of operands that are rounded to bf16 first: exact but for 1e-15."""
    x = x.bfloat16().double().requires_grad_()
    own = [p.detach().bfloat16().double().requires_grad_() for p in layer.parameters()]
    weight, bias = own[0], own[1] if len(own) > 1 else None
    if isinstance(layer, nn.Linear):
        out = F.linear(x, weight, bias)
    else:
        out = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    out.backward(outer.double())
    return [out, x.grad, *(p.grad for p in own)]


@pytest.mark.parametrize("which", range(3))
def test_outputs_and_gradients_are_float64s_rounded_to_bf16(which):
    layer, x = list(layers())[which]
    got, exact = through(layer, x, Bf16ByFp32()), as_double(layer, x)
    assert got[0].dtype == torch.bfloat16
    assert {g.dtype for g in got[1:]} == {torch.float32}
    for g, e in zip(got, exact, strict=True):
        e = e.detach()
        # fp32 sums of terms that cancel are off by some 1e-6 of the terms, not of their sum
        assert ((g.double() - e).abs() <= HALF * e.abs() + 1e-5).all()
        assert torch.equal(g, g.bfloat16().to(g.dtype))  # a bf16 number, whatever holds it
    theirs = through(layer, x, nullcontext())
    for g, t in zip(got, theirs, strict=True):
        assert g.dtype == t.dtype
        assert (g - t).norm() < 2 * HALF * t.norm()  # torch's own kernel rounds sums, too


def test_it_is_used_where_there_are_no_instructions_and_only_there(monkeypatch, tiny):
    x = torch.randn(2, 3, 16, 16)
    layer, used = nn.Conv2d(3, 4, 3), []

    class Seen(Bf16ByFp32):
        def __torch_function__(self, *args, **kwargs):
            used.append(args[0])
            return super().__torch_function__(*args, **kwargs)

    monkeypatch.setattr(precision, "Bf16ByFp32", Seen)
    for native in (True, False):
        for kind in ("fp32", "bf16"):
            monkeypatch.setattr(precision, "fast_bf16", lambda native=native: native)
            used.clear()
            with autocast(tiny(precision=kind), CPU):
                out = layer(x)
            assert bool(used) is (kind == "bf16" and not native)
            assert out.dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    assert layer(x).dtype == torch.float32  # and nothing of it is left behind


@pytest.mark.parametrize(
    ("instructions", "fast"),
    [
        ({"avx512_bf16"}, True),
        ({"amx_bf16"}, True),
        ({"avx512_bf16", "amx_bf16"}, True),
        (set(), False),
    ],
)
def test_avx512_without_bf16_instructions_is_not_fast(monkeypatch, instructions, fast):
    """Whatever torch says of it: it calls AVX-512 alone supported."""
    processor = {"architecture": "x86_64", "avx512_bw": True, "avx512_vl": True, "avx512_dq": True}
    processor |= {name: name in instructions for name in ("avx512_bf16", "amx_bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision.fast_bf16.__wrapped__() is fast


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo on this system")
def test_the_processors_own_word_for_its_instructions():
    if torch.cpu.get_capabilities().get("architecture") != "x86_64":
        pytest.skip("the flags have these names on x86-64 only")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert precision.fast_bf16() is bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize("network", ["resnet8", "vgg8", "mobilenetv2"])
def test_a_network_is_as_near_to_fp32_as_autocast_itself(monkeypatch, tiny, network):
    """Rounded to eight bits some ten times in a row: a percent or so of the logits' size."""
    spec = tiny(student=network, precision="bf16")
    model, x = initial_model(spec, 10).eval(), torch.randn(8, 3, 32, 32)
    off = {}
    with torch.inference_mode():
        exact = model(x)
        for native in (True, False):
            monkeypatch.setattr(precision, "fast_bf16", lambda native=native: native)
            with autocast(spec, CPU):
                off[native] = (model(x).float() - exact).norm() / exact.norm()
    assert 0 < off[False] < 0.05
    assert off[False] < 2 * off[True]


def test_steps_evaluation_and_the_teachers_rows_are_rounded_where_bf16_is_asked_for(tmp_path, tiny):
    data, model = load("digits", 20.0), initial_model(tiny(seed=1), 10)
    feed, found = data.feed(CPU), {}
    for kind in ("fp32", "bf16"):
        spec = tiny(precision=kind, method="kd", teacher="resnet8")
        teacher = Teacher(model, spec, feed, tmp_path / kind)
        teacher.begin_epoch(torch.zeros_like(data.train_labels))
        logits = predict(model, data, data.test_images[:40], spec)
        alone = tiny(precision=kind)  # so that the teacher has no part in the step's loss
        objective = initial_objective(alone, data)
        trainer = Trainer(alone, data, objective, None, feed, tmp_path / "none")
        trainer.step(torch.arange(32), 0.0)
        found[kind] = teacher.rows.float(), logits, trainer.sums[0]
    for exact, rounded in zip(*found.values(), strict=True):
        assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


def test_where_autocast_is_off_nothing_is_rounded():
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16), Bf16ByFp32():
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16


def test_a_run_by_fp32_is_near_that_of_the_instructions_and_its_record_says_so(
    monkeypatch, tiny, tmp_path
):
    records = {}
    for native in (True, False):
        monkeypatch.setattr(precision, "fast_bf16", lambda native=native: native)
        spec = tiny(precision="bf16", epochs=2)
        records[native] = run(spec, outputs=tmp_path / str(native)).values
        plain = run(tiny(epochs=1), outputs=tmp_path / str(native)).values
        assert "bf16" not in plain["hardware"]
    assert "bf16" not in records[True]["hardware"]
    assert records[False]["hardware"] == records[True]["hardware"] + ", bf16 by fp32"
    for epoch in (0, 1):
        first, second = (records[n]["history"][epoch]["loss"] for n in (True, False))
        assert second == pytest.approx(first, rel=0.02)
