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
def native_bf16() -> bool:
    """Whether convolutions in bf16 have a fast kernel on this processor."""
    return bool(torch.backends.mkldnn.is_available()) and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Bf16ByFp32(TorchFunctionMode):
    """Autocast's convolutions and linear layers, from fp32 arithmetic: the bf16 operands are raised
    and the fp32 result is rounded to bf16, in the gradient too.

    Products of bf16 numbers are exact in fp32 and sums are fp32 in bf16 instructions as well, so
    only the order of the sums differs, as it does between processors. Without such instructions
    torch takes a reference kernel, and a step of VGG8 is about twenty times slower than this.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (F.conv2d, F.linear):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            raised = {key: _through_bf16(value) for key, value in kwargs.items()}
            result: Tensor = func(*map(_through_bf16, args), **raised)
            return result.bfloat16()


def _through_bf16(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value


@contextmanager
def autocast(spec: RunSpec, device: torch.device) -> Iterator[None]:
    """bf16 autocast where the spec asks for it; weights, losses and the optimiser stay fp32."""
    bf16 = spec.precision == "bf16"
    slow = bf16 and device.type == "cpu" and not native_bf16()
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
        Bf16ByFp32() if slow else nullcontext(),
    ):
        yield
