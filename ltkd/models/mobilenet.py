"""MobileNetV2 for small images (Sandler et al., CVPR 2018), MobileNetV1 (Howard et al., 2017).

mobilenetv2: 812,836 parameters and 6.52 million multiply-adds at 32 x 32 with 100 classes;
mobilenetv1: 4,231,976 and 569 at 224 x 224 with 1000.
"""

from typing import cast

from torch import Tensor, nn

from .resnet import initialise


def conv_bn(in_width: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution without bias, batch norm: [B, in, H, W] -> [B, width, H / stride, W / stride]."""
    padding = kernel // 2
    conv = nn.Conv2d(in_width, width, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the width, depthwise 3x3, linear 1x1; identity where shapes agree.

    The first block, of expansion 1, keeps its first 1x1 convolution.
    """

    def __init__(self, in_width: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = in_width * expansion
        self.identity = stride == 1 and in_width == width
        self.branch = nn.Sequential(
            conv_bn(in_width, mid, 1),
            nn.ReLU(),
            conv_bn(mid, mid, 3, stride, groups=mid),
            nn.ReLU(),
            conv_bn(mid, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return cast(Tensor, x + y if self.identity else y)


class MobileNetV2(nn.Module):
    """Expansion 6, width 0.5: stem 16 at stride 2, then 8 12 16 32 48 80 160, last 1x1 to 1280.

    ReLU (not ReLU6) after the stem, both inner convolutions and the last 1x1.
    Initialisation: convolutions N(0, sqrt(2 / (k^2 out))), batch norm 1 / 0, classifier
    N(0, 0.01), bias 0.
    """

    widths = (8, 12, 16, 32, 48, 80, 160)
    repeats = (1, 2, 3, 4, 3, 3, 1)
    strides = (1, 1, 2, 2, 1, 2, 1)
    taps = ("stages.1", "stages.2", "stages.4", "stages.6")
    pre_taps = ("stages.2", "stages.3", "stages.5", "last")  # whose inputs the same features are

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 3, 2), nn.ReLU())
        self.stages = nn.Sequential()
        in_width = 16
        for width, repeat, stride in zip(self.widths, self.repeats, self.strides, strict=True):
            blocks = nn.Sequential()
            for i in range(repeat):
                expansion = 6 if len(self.stages) else 1
                blocks.append(InvertedResidual(in_width, width, 1 if i else stride, expansion))
                in_width = width
            self.stages.append(blocks)
        self.last = nn.Sequential(conv_bn(in_width, 1280, 1), nn.ReLU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(1280, num_classes)
        initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.stages(self.stem(x)))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


class MobileNetV1(nn.Module):
    """A stem 32 wide at stride 2 (unit 0), 13 depthwise-separable units at width 1, for 224 pixels.

    Initialisation: torch's default.
    """

    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    halving = (2, 4, 6, 12)  # the units of stride 2
    taps = ("units.3.3", "units.5.3", "units.11.3", "units.13.3")  # each unit's last ReLU
    pre_taps = taps

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.units = nn.Sequential(nn.Sequential(conv_bn(3, 32, 3, 2), nn.ReLU()))
        in_width = 32
        for number, width in enumerate(self.widths, start=1):
            stride = 2 if number in self.halving else 1
            unit = nn.Sequential(conv_bn(in_width, in_width, 3, stride, in_width), nn.ReLU())
            self.units.append(unit.extend([conv_bn(in_width, width, 1), nn.ReLU()]))
            in_width = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.avgpool(self.units(x)).flatten(1)))
