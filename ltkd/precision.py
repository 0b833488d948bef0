"""bf16 autocast, at a speed that can be used on any processor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .params import RunSpec


@cache
def fast_bf16() -> bool:
    """Whether torch has a fast kernel for convolutions in bf16 on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    processor = torch.cpu.get_capabilities()
    if processor.get("architecture") == "x86_64":
        # torch calls AVX-512 alone supported, where a step by its kernels takes three times as
        # long as one in fp32.
        return bool(processor["avx512_bf16"] or processor["amx_bf16"])
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def by_fp32(spec: RunSpec, device: torch.device) -> bool:
    """Whether this run's bf16 comes from fp32 arithmetic; its record says so."""
    return spec.precision == "bf16" and device.type == "cpu" and not fast_bf16()


class Bf16ByFp32(TorchFunctionMode):
    """Autocast's convolutions and linear layers, from fp32 arithmetic: the operands are rounded to
    bf16 and raised, and the result is rounded to bf16, in the gradient too.

    Products of bf16 numbers are exact in fp32, and bf16 instructions sum in fp32 as well, so that
    results differ in the last place only, by the order of the sums, as they do between processors.
    Where torch has no fast kernel, a step of VGG8 takes it about twenty times as long as this on an
    AVX2 processor, its forward and backward pass three times as long on one with AVX-512.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear) or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            raised = {key: _through_bf16(value) for key, value in kwargs.items()}
            result: Tensor = func(*map(_through_bf16, args), **raised)
            return result.bfloat16()


def _through_bf16(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value


@contextmanager
def whole_fp32(spec: RunSpec, device: torch.device) -> Iterator[None]:
    """Convolutions in fp32 where the spec asks for it: a GPU rounds their factors to ten bits
    (TF32) else."""
    if spec.precision != "fp32" or device.type != "cuda":
        yield
        return
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


@contextmanager
def autocast(spec: RunSpec, device: torch.device) -> Iterator[None]:
    """bf16 autocast where the spec asks for it, else ``whole_fp32``; weights, losses and the
    optimiser stay fp32."""
    with (
        whole_fp32(spec, device),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=spec.precision == "bf16"),
        Bf16ByFp32() if by_fp32(spec, device) else nullcontext(),
    ):
        yield
