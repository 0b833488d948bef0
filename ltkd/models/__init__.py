"""The networks of the study by name, their intermediate features and class activation maps.

Every network takes images [B, 3, H, W] of 32, 64 or 224 pixels (resnet8 and resnet20 of 16 too),
ends in global average pooling `avgpool` and one linear classifier `fc`, and returns logits [B, C].
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .mobilenet import MobileNetV1, MobileNetV2
from .resnet import ResNet, torchvision_resnet
from .shufflenet import ShuffleNetV1
from .vgg import VGG
from .wrn import WRN

_BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(ResNet, 1, (16, 16, 32, 64)),
    "resnet20": partial(ResNet, 3, (16, 16, 32, 64)),
    "resnet8x4": partial(ResNet, 1, (32, 64, 128, 256)),
    "resnet32x4": partial(ResNet, 5, (32, 64, 128, 256)),
    "resnet50": lambda num_classes: torchvision_resnet(50, num_classes, small_images=True),
    "resnet18_imagenet": partial(torchvision_resnet, 18),
    "resnet34_imagenet": partial(torchvision_resnet, 34),
    "resnet50_imagenet": partial(torchvision_resnet, 50),
    "vgg8": partial(VGG, 1),
    "vgg13": partial(VGG, 2),
    "wrn_40_1": partial(WRN, 40, 1),
    "wrn_40_2": partial(WRN, 40, 2),
    "shufflenetv1": ShuffleNetV1,
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
}


def list_models() -> list[str]:
    """Names that `create_model` knows, sorted."""
    return sorted(_BUILDERS)


def create_model(name: str, num_classes: int) -> nn.Module:
    """Build the untrained network `name` with `num_classes` outputs.

    Weights are drawn from torch's global generator: seed it first for a repeatable network.

    Raises:
        ValueError: the name is unknown, or num_classes is less than 1.
    """
    if name not in _BUILDERS:
        nearest = get_close_matches(name, list_models(), n=1, cutoff=0)[0]
        raise ValueError(
            f"model {name!r} is unknown; the nearest is {nearest!r}. "
            f"Known (ltkd.models.list_models()): {', '.join(list_models())}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be 1 or more")
    model = _BUILDERS[name](num_classes)
    model.sink = _Sink(model)  # type: ignore[assignment]
    return model


def classifier(model: nn.Module) -> nn.Linear:
    """The last linear layer: weight [C, D] and bias [C] for pooled features [B, D]."""
    return cast(nn.Linear, model.fc)


class _Sink:
    """Keeps (input, output) of the tapped modules, by name, while `kept` is a dictionary.

    Its hooks are registered once, when a network is made: torch.compile traces them into the
    graph, where hooks that come and go with a call would break it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.kept: dict[str, tuple[Tensor, Tensor]] | None = None
        for name in {*network.taps, *network.pre_taps, "avgpool"}:  # type: ignore[misc]
            network.get_submodule(name).register_forward_hook(partial(self.keep, name))

    def keep(self, name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.kept is not None:  # a module that runs more than once leaves its last call
            self.kept[name] = (args[0], output)


def _capture(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Logits [B, C] and, of every tapped module of `create_model`'s network, (input, output)."""
    sink = cast(_Sink, model.sink)
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    sink.kept = kept
    try:
        logits = model(x)
    finally:
        sink.kept = None
    return logits, kept


def forward_features(
    model: nn.Module, x: Tensor, pre_activation: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Logits [B, C] and the features [B, D, H, W] that ReviewKD compares, shallow to deep.

    One feature a resolution stage, the stem left out, then the pooled feature [B, D, 1, 1], which
    always comes after the last ReLU. With `pre_activation` (teachers; students at 224 pixels) a
    feature is taken before its stage's last ReLU; for WRN, whose stages end without one, it is
    the next batch norm's output. Without it (smaller students) it is the stage's output.
    MobileNetV2's blocks are linear: both are the same.

    The modules to read stand in the network's `taps` (outputs) and `pre_taps` (inputs). Features
    carry gradients, and batch norm behaves as the network's mode says.
    """
    names = cast(tuple[str, ...], model.pre_taps if pre_activation else model.taps)
    logits, kept = _capture(model, x)
    side = 0 if pre_activation else 1
    return logits, [*(kept[name][side] for name in names), kept["avgpool"][1]]


def class_activation_maps(model: nn.Module, feature_map: Tensor) -> Tensor:
    """CAT-KD, Guo et al., CVPR 2023: the classifier's weight as a 1x1 convolution.

    [B, D, H, W] -> [B, C, H, W]. The bias is left out: logits = spatial mean of the maps + bias.
    """
    return F.conv2d(feature_map, classifier(model).weight[:, :, None, None])


def forward_maps(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] and class activation maps [B, C, H, W] of the map that is pooled at the end."""
    logits, kept = _capture(model, x)
    return logits, class_activation_maps(model, kept["avgpool"][0])
