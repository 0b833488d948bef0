"""Residual networks (He et al., CVPR 2016): thin and four times wide for 32 pixels, torchvision's.

| name        | input   | classes | parameters | million multiply-adds |
|-------------|---------|---------|------------|-----------------------|
| resnet8     | 16 x 16 | 10      | 78,042     | 3.13                  |
| resnet20    | 16 x 16 | 10      | 272,474    | 10.20                 |
| resnet8x4   | 32 x 32 | 100     | 1,233,540  | 177.07                |
| resnet32x4  | 32 x 32 | 100     | 7,433,860  | 1083.04               |
| resnet50    | 32 x 32 | 100     | 23,705,252 | 1298.01               |
"""

from typing import cast

from torch import Tensor, nn


def initialise(model: nn.Module) -> None:
    """Fill every convolution from N(0, sqrt(2 / (k^2 out))), its bias with 0; all else stays.

    Kaiming's normal initialisation in fan_out mode is the same distribution (torch counts a
    depthwise convolution's fan_out as k^2 out too), so that the two rules in use are this one.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, in, H, W] -> [B, out, H / stride, W / stride].

    The shortcut is a 1x1 convolution with batch norm where the shape changes, else the identity.
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            conv = nn.Conv2d(in_width, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu2(y + self.shortcut(x)))


class ResNet(nn.Module):
    """ResNet for small images: a 3x3 stem, three stages of `depth` basic blocks, strides 1 2 2.

    `widths` are those of the stem and of the three stages: 16 16 32 64 thin, 32 64 128 256 "x4".
    Initialisation: convolutions kaiming_normal fan_out, batch norm 1 / 0 (no zero-init of the
    residual branch), classifier torch's default.
    """

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        in_width = stem
        for stage, width in enumerate(stages):
            blocks = nn.Sequential()
            for block in range(depth):
                blocks.append(BasicBlock(in_width, width, 2 if stage and not block else 1))
                in_width = width
            self.stages.append(blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_width, num_classes)
        self.taps = tuple(f"stages.{stage}.{depth - 1}.relu2" for stage in range(3))
        self.pre_taps = self.taps
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.conv(x))))
        return cast(Tensor, self.fc(self.avgpool(x).flatten(1)))


def torchvision_resnet(depth: int, num_classes: int, small_images: bool = False) -> nn.Module:
    """torchvision's untrained ResNet; with `small_images` a 3x3 stem of stride 1 and no max-pool.

    Initialisation is torchvision's, the same as in `ResNet`. Its in-place ReLUs are made plain,
    as they would overwrite the pre-activation features that distillation reads.
    """
    import torchvision  # slow to import, and the small networks do without it

    model = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=num_classes)
    if small_images:
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        initialise(model.conv1)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    # A block calls its one ReLU two or three times; the last call is the block's output.
    model.taps = tuple(f"layer{i}.{len(getattr(model, f'layer{i}')) - 1}.relu" for i in range(1, 5))
    model.pre_taps = model.taps
    return cast(nn.Module, model)
