"""Sizes, initialisation and inputs of the networks against the counts reported for them."""

import math

import pytest
import torch
from torch import nn

from ltkd.models import classifier, create_model, list_models

# name: parameters with 100 classes, million multiply-adds at 32 x 32, feature width
CIFAR = {
    "resnet32x4": (7_433_860, 1083.04, 256),
    "resnet8x4": (1_233_540, 177.07, 256),
    "vgg13": (9_462_180, 284.94, 512),
    "vgg8": (3_965_028, 96.19, 512),
    "wrn_40_2": (2_255_156, 327.61, 128),
    "wrn_40_1": (569_780, 83.29, 64),
    "mobilenetv2": (812_836, 6.52, 1280),
    "shufflenetv1": (949_258, 38.69, 960),
    "resnet50": (23_705_252, 1298.01, 2048),
}
IMAGENET = {  # parameters with 1000 classes
    "resnet18_imagenet": 11_689_512,
    "resnet34_imagenet": 21_797_672,
    "resnet50_imagenet": 25_557_032,
    "mobilenetv1": 4_231_976,
}
# By hand. Convolutions of a stage of n blocks at width w: 9 (w w) (2 n), less half of the first
# one where the width doubles; a shortcut adds w/2 w; every convolution's batch norm adds 2 w.
THIN = {"resnet8": (78_042, 3.13), "resnet20": (272_474, 10.20)}  # 10 classes, 16 x 16


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def million_multiply_adds(model: nn.Module, pixels: int) -> float:
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        per_output = module.weight[0].numel()  # one output value: a dot product this long
        total += output[0].numel() * per_output

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, pixels, pixels))
    return total / 1e6


@pytest.mark.parametrize("name", CIFAR)
def test_reported_sizes(name: str) -> None:
    count, million, width = CIFAR[name]
    model = create_model(name, 100)
    assert parameters(model) == count
    assert million_multiply_adds(model, 32) == pytest.approx(million, abs=0.005)
    assert classifier(model).in_features == width
    assert parameters(create_model(name, 200)) == count + 100 * (width + 1)


@pytest.mark.parametrize("name", IMAGENET)
def test_reported_sizes_imagenet(name: str) -> None:
    model = create_model(name, 1000)
    assert parameters(model) == IMAGENET[name]
    if name == "mobilenetv1":
        assert million_multiply_adds(model, 224) == pytest.approx(569, abs=0.5)


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3)])
def test_thin_resnets(name: str, blocks: int) -> None:
    count, million = THIN[name]
    convolutions, norms, adds = 3 * 16 * 9, 2 * 16, 3 * 16 * 9 * 16**2
    before = 16
    for width, side in ((16, 16), (32, 8), (64, 4)):
        first = before * width * 9 + (before * width if width != before else 0)
        weights = first + width * width * 9 * (2 * blocks - 1)
        convolutions += weights
        adds += weights * side**2
        norms += 2 * width * (2 * blocks + (width != before))
        before = width
    model = create_model(name, 10)
    assert parameters(model) == convolutions + norms + 64 * 10 + 10 == count
    assert million_multiply_adds(model, 16) == (adds + 64 * 10) / 1e6
    assert million_multiply_adds(model, 16) == pytest.approx(million, abs=0.005)


@pytest.mark.parametrize("name", [*CIFAR, *THIN])
@pytest.mark.parametrize("pixels", [32, 64])
def test_inputs(name: str, pixels: int) -> None:
    model = create_model(name, 7).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, pixels, pixels)).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2", "wrn_40_1", "shufflenetv1"])
def test_large_inputs(name: str) -> None:
    with torch.no_grad():
        assert create_model(name, 3).eval()(torch.randn(1, 3, 224, 224)).shape == (1, 3)


NORMAL = [
    name for name in [*CIFAR, *THIN, *IMAGENET] if name not in ("shufflenetv1", "mobilenetv1")
]


@pytest.mark.parametrize("name", list_models())
def test_convolutions_start_as_the_papers_did(name: str) -> None:
    torch.manual_seed(0)
    squares, count = 0.0, 0  # of all weights, each layer brought to unit variance
    for conv in create_model(name, 10).modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        area = conv.kernel_size[0] * conv.kernel_size[1]
        weight = conv.weight.detach().double()
        if name in NORMAL:
            unit = weight / math.sqrt(2 / (area * conv.out_channels))
            fourth = 3.0  # moment of a normal variable
        else:  # torch's default: uniform within 1 / sqrt(fan_in)
            bound = 1 / math.sqrt(area * conv.in_channels / conv.groups)
            assert weight.abs().max() <= bound
            unit = weight / bound * math.sqrt(3)
            fourth = 9 / 5
        n = unit.numel()
        assert abs(unit.mean()) < 5 / math.sqrt(n)
        assert abs(unit.square().mean() - 1) < 5 * math.sqrt((fourth - 1) / n)
        squares, count = squares + unit.square().sum().item(), count + n
        assert conv.bias is None or not conv.bias.any()
    assert squares / count == pytest.approx(1, abs=5 * math.sqrt(2 / count))


@pytest.mark.parametrize("name", list_models())
def test_batch_norm_and_classifier_start(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, 100)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    layer = classifier(model)
    if name in ("vgg8", "vgg13", "mobilenetv2"):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    else:
        bound = 1 / math.sqrt(layer.in_features)
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    zero_bias = name.startswith(("vgg", "wrn")) or name == "mobilenetv2"
    assert bool(layer.bias.any()) is not zero_bias


def test_seed_decides_the_weights() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(create_model("resnet8", 10).state_dict()["conv.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_shuffle_deals_the_groups_out_in_turn() -> None:
    """With identity weights before it, channel 20 g + i of 60 stands at 3 i + g after it."""
    unit = create_model("shufflenetv1", 10).eval().get_submodule("stages.0.1")
    seen: list[torch.Tensor] = []
    unit.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unit.conv1 = nn.Sequential()  # passes its first 60 channels on
    unit.bn1 = nn.Sequential()
    unit.relu1.register_forward_hook(lambda _, args, output: output[:, :60])
    with torch.no_grad():
        unit(torch.arange(240.0).view(1, 240, 1, 1))
    assert seen[0].flatten().tolist() == [20 * g + i for i in range(20) for g in range(3)]


def test_names() -> None:
    assert list_models() == sorted([*CIFAR, *IMAGENET, *THIN])


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("resnet8x5", "resnet8x4"), ("WRN_40_2", "wrn_40_2"), ("", "")]
)
def test_unknown_name(wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match="is unknown") as error:
        create_model(wrong, 10)
    assert f"the nearest is '{nearest}" in str(error.value)
    assert all(name in str(error.value) for name in list_models())


@pytest.mark.parametrize("num_classes", [0, -3])
def test_too_few_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_classes is {num_classes}; it must be 1 or more"):
        create_model("resnet8", num_classes)
