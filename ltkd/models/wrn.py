"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016): pre-activation blocks, no dropout.

At 32 x 32 with 100 classes wrn_40_1 has 569,780 parameters and 83.29 million multiply-adds,
wrn_40_2 2,255,156 and 327.61.
"""

from typing import cast

from torch import Tensor, nn

from .resnet import initialise


class Block(nn.Module):
    """BN, ReLU, 3x3 conv, twice, and a shortcut: [B, in, H, W] -> [B, out, H / s, W / s].

    Where the widths differ, the shortcut is a bare 1x1 convolution of the first BN and ReLU's
    output; else it is the block's raw input.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if in_width != width:
            self.shortcut = nn.Conv2d(in_width, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        return cast(Tensor, x + self.conv2(self.relu2(self.bn2(self.conv1(y)))))


class WRN(nn.Module):
    """WRN-d-k: a 3x3 stem 16 wide, three stages of (d - 4) / 6 blocks, widths k x (16, 32, 64).

    Initialisation: convolutions N(0, sqrt(2 / (k^2 out))), batch norm 1 / 0, classifier weight
    torch's default, bias 0.
    """

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        in_width = 16
        for stage, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            blocks = nn.Sequential()
            for block in range((depth - 4) // 6):
                blocks.append(Block(in_width, width, 2 if stage and not block else 1))
                in_width = width
            self.stages.append(blocks)
        self.bn = nn.BatchNorm2d(in_width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_width, num_classes)
        self.taps = ("stages.0", "stages.1", "stages.2")
        self.pre_taps = ("stages.1.0.relu1", "stages.2.0.relu1", "relu")
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stages(self.conv(x))))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))
