"""ShuffleNetV1 for small images (Zhang et al., CVPR 2018): 3 groups, 240 / 480 / 960 wide.

At 32 x 32 with 100 classes: 949,258 parameters and 38.69 million multiply-adds.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1: [B, in, H, W] -> [B, width, H / s, W / s].

    At stride 2 the average-pooled input is concatenated and the branch makes the rest of the
    width; at stride 1 the input is added. The bottleneck is a quarter of what the branch makes.
    A ReLU follows the depthwise batch norm too, unlike the paper and like the code in common use.
    """

    def __init__(self, in_width: int, width: int, stride: int, first_groups: int) -> None:
        super().__init__()
        out = width - in_width if stride == 2 else width
        mid = out // 4
        self.stride, self.groups = stride, first_groups
        self.conv1 = nn.Conv2d(in_width, mid, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(mid, out, 1, groups=3, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(self.relu1(self.bn1(self.conv1(x))), self.groups)
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        if self.stride == 2:
            y = torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        else:
            y = y + x
        return cast(Tensor, self.relu3(y))


class ShuffleNetV1(nn.Module):
    """A 1x1 stem 24 wide, no max-pool, stages of 4, 8 and 4 units that each start at stride 2.

    The very first unit's first convolution is not grouped. Initialisation: torch's default.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 1, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        in_width = 24
        for width, depth in ((240, 4), (480, 8), (960, 4)):
            units = nn.Sequential()
            for unit in range(depth):
                units.append(Unit(in_width, width, 1 if unit else 2, 1 if in_width == 24 else 3))
                in_width = width
            self.stages.append(units)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_width, num_classes)
        self.taps = ("stages.0.3.relu3", "stages.1.7.relu3", "stages.2.3.relu3")
        self.pre_taps = self.taps

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.conv(x))))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))
