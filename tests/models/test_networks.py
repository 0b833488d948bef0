"""Sizes, initialisation and inputs of the networks against the counts reported for them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


# ---- The papers' networks written again, as functions of a state dict.

State = dict[str, Tensor]


def conv(s: State, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, s.get(f"{name}.bias"), stride, padding, groups=groups)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var, scale, shift = (
        s[f"{name}.{key}"][:, None, None]
        for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def children(s: State, at: str) -> int:
    return len({key.removeprefix(f"{at}.").split(".")[0] for key in s if key.startswith(f"{at}.")})


def resnet(s: State, x: Tensor) -> Tensor:
    x = norm(s, "bn", conv(s, "conv", x)).relu()
    for stage in range(3):
        for block in range(children(s, f"stages.{stage}")):
            at, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            y = norm(s, f"{at}.bn1", conv(s, f"{at}.conv1", x, stride)).relu()
            y = norm(s, f"{at}.bn2", conv(s, f"{at}.conv2", y))
            if f"{at}.shortcut.0.weight" in s:
                x = norm(s, f"{at}.shortcut.1", conv(s, f"{at}.shortcut.0", x, stride))
            x = (x + y).relu()
    return x


def bottlenecks(s: State, x: Tensor) -> Tensor:
    """ResNet50 for small images."""
    x = norm(s, "bn1", conv(s, "conv1", x)).relu()
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            y = norm(s, f"{at}.bn1", conv(s, f"{at}.conv1", x)).relu()
            y = norm(s, f"{at}.bn2", conv(s, f"{at}.conv2", y, stride)).relu()
            y = norm(s, f"{at}.bn3", conv(s, f"{at}.conv3", y))
            if not block:
                x = norm(s, f"{at}.downsample.1", conv(s, f"{at}.downsample.0", x, stride))
            x = (x + y).relu()
    return x


def vgg(s: State, x: Tensor) -> Tensor:
    pools = 4 if x.shape[-1] == 64 else 3
    for block in range(5):
        for layer in range(0, children(s, f"blocks.{block}"), 3):
            at = f"blocks.{block}.{layer}", f"blocks.{block}.{layer + 1}"
            x = norm(s, at[1], conv(s, at[0], x)).relu()
        if block < pools:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    return x


def wrn(s: State, x: Tensor) -> Tensor:
    x = conv(s, "conv", x)
    for stage in range(3):
        for block in range(children(s, f"stages.{stage}")):
            at, stride = f"stages.{stage}.{block}", 2 if stage and not block else 1
            y = norm(s, f"{at}.bn1", x).relu()
            # Where the width changes, the shortcut begins at the activation that it shares.
            x = conv(s, f"{at}.shortcut", y, stride) if f"{at}.shortcut.weight" in s else x
            y = norm(s, f"{at}.bn2", conv(s, f"{at}.conv1", y, stride)).relu()
            x = x + conv(s, f"{at}.conv2", y)
    return norm(s, "bn", x).relu()


def shufflenet(s: State, x: Tensor) -> Tensor:
    x = norm(s, "bn", conv(s, "conv", x)).relu()
    for stage, units in enumerate((4, 8, 4)):
        for unit in range(units):
            at, stride = f"stages.{stage}.{unit}", 1 if unit else 2
            groups = 3 if stage or unit else 1
            y = norm(s, f"{at}.bn1", conv(s, f"{at}.conv1", x, groups=groups)).relu()
            y = torch.cat([y[:, i :: y.shape[1] // groups] for i in range(y.shape[1] // groups)], 1)
            y = conv(s, f"{at}.conv2", y, stride, groups=y.shape[1])
            y = norm(s, f"{at}.bn3", conv(s, f"{at}.conv3", norm(s, f"{at}.bn2", y).relu(), 1, 3))
            ninth = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
            mean = F.conv2d(x, ninth, stride=2, padding=1, groups=x.shape[1])
            x = (x + y if unit else torch.cat([y, mean], 1)).relu()
    return x


def mobilenetv2(s: State, x: Tensor) -> Tensor:
    x = norm(s, "stem.0.1", conv(s, "stem.0.0", x, 2)).relu()
    for stage, first in enumerate((1, 1, 2, 2, 1, 2, 1)):
        for block in range(children(s, f"stages.{stage}")):
            at, stride = f"stages.{stage}.{block}.branch", 1 if block else first
            y = norm(s, f"{at}.0.1", conv(s, f"{at}.0.0", x)).relu()
            y = norm(s, f"{at}.2.1", conv(s, f"{at}.2.0", y, stride, y.shape[1])).relu()
            y = norm(s, f"{at}.4.1", conv(s, f"{at}.4.0", y))
            x = x + y if stride == 1 and x.shape == y.shape else y
    return norm(s, "last.0.1", conv(s, "last.0.0", x)).relu()


def mobilenetv1(s: State, x: Tensor) -> Tensor:
    x = norm(s, "units.0.0.1", conv(s, "units.0.0.0", x, 2)).relu()
    for unit in range(1, 14):
        stride = 2 if unit in (2, 4, 6, 12) else 1
        x = conv(s, f"units.{unit}.0.0", x, stride, x.shape[1])
        x = norm(s, f"units.{unit}.0.1", x).relu()
        x = norm(s, f"units.{unit}.2.1", conv(s, f"units.{unit}.2.0", x)).relu()
    return x


WRITTEN_AGAIN = {
    "resnet8": resnet, "resnet20": resnet, "resnet8x4": resnet, "resnet32x4": resnet,
    "resnet50": bottlenecks, "vgg8": vgg, "vgg13": vgg, "wrn_40_1": wrn, "wrn_40_2": wrn,
    "shufflenetv1": shufflenet, "mobilenetv2": mobilenetv2, "mobilenetv1": mobilenetv1,
}  # fmt: skip


def stirred(model: nn.Module) -> nn.Module:
    """In float64 and eval mode; every batch norm and bias counts, and many a value is above 6."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_()
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=3)
    return model.double().eval()


@pytest.mark.parametrize("name", WRITTEN_AGAIN)
@torch.no_grad()
def test_a_network_is_the_paper_written_again(name: str) -> None:
    model = stirred(create_model(name, 5))
    for pixels in (32, 64) if name == "vgg8" else (16,) if "resnet" in name else (32,):
        x = torch.randn(1, 3, pixels, pixels, dtype=torch.float64)
        s = model.state_dict()
        pooled = WRITTEN_AGAIN[name](s, x).mean((2, 3))
        logits = pooled @ s["fc.weight"].T + s["fc.bias"]
        torch.testing.assert_close(model(x), logits, rtol=1e-9, atol=1e-9 * logits.abs().max())


@pytest.mark.parametrize("depth", [18, 34, 50])
@torch.no_grad()
def test_imagenets_resnets_are_torchvisions(depth: int) -> None:
    import torchvision

    model = stirred(create_model(f"resnet{depth}_imagenet", 5))
    other = getattr(torchvision.models, f"resnet{depth}")(num_classes=5).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=0)


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
