"""VGG with batch norm for small images (Simonyan & Zisserman, ICLR 2015; one linear layer).

At 32 x 32 with 100 classes vgg8 has 3,965,028 parameters and 96.19 million multiply-adds, vgg13
9,462,180 and 284.94.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import initialise


class VGG(nn.Module):
    """Five blocks of `depth` 3x3 convolutions (with bias), batch norm and ReLU: 64 ... 512 wide.

    A 2x2 max-pool follows blocks 1, 2 and 3, and block 4 where the input has 64 pixels or more:
    block 5 runs at 4x4 for inputs of 32 and of 64 pixels.
    Initialisation: convolutions N(0, sqrt(2 / (k^2 out))), bias 0; batch norm 1 / 0; classifier
    N(0, 0.01), bias 0.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        in_width = 3
        for width in (64, 128, 256, 512, 512):
            block = nn.Sequential()
            for _ in range(depth):
                block.append(nn.Conv2d(in_width, width, 3, padding=1))
                block.append(nn.BatchNorm2d(width))
                block.append(nn.ReLU())
                in_width = width
            self.blocks.append(block)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_width, num_classes)
        self.taps = tuple(f"blocks.{block}.{3 * depth - 1}" for block in range(1, 5))
        self.pre_taps = self.taps
        initialise(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        pools = 4 if x.shape[-1] >= 64 else 3
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < pools:
                x = F.max_pool2d(x, 2)
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))
