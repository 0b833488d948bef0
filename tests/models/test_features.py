"""What distillation reads from the networks: features, their order and sides, activation maps."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ltkd.models import (
    class_activation_maps,
    classifier,
    create_model,
    forward_features,
    forward_maps,
    list_models,
)

# width@side, shallow to deep, at 32 x 32 (thin ResNets: 16 x 16); ImageNet's at 224 x 224
TAPS = {
    "resnet8": (16, "16@16 32@8 64@4 64@1"),
    "resnet20": (16, "16@16 32@8 64@4 64@1"),
    "resnet8x4": (32, "64@32 128@16 256@8 256@1"),
    "resnet32x4": (32, "64@32 128@16 256@8 256@1"),
    "vgg8": (32, "128@16 256@8 512@4 512@4 512@1"),
    "vgg13": (32, "128@16 256@8 512@4 512@4 512@1"),
    "wrn_40_1": (32, "16@32 32@16 64@8 64@1"),
    "wrn_40_2": (32, "32@32 64@16 128@8 128@1"),
    "shufflenetv1": (32, "240@16 480@8 960@4 960@1"),
    "mobilenetv2": (32, "12@16 16@8 48@4 160@2 1280@1"),
    "resnet50": (32, "256@32 512@16 1024@8 2048@4 2048@1"),
    "resnet18_imagenet": (224, "64@56 128@28 256@14 512@7 512@1"),
    "resnet34_imagenet": (224, "64@56 128@28 256@14 512@7 512@1"),
    "resnet50_imagenet": (224, "256@56 512@28 1024@14 2048@7 2048@1"),
    "mobilenetv1": (224, "128@56 256@28 512@14 1024@7 1024@1"),
}
SMALL = [name for name, (pixels, _) in TAPS.items() if pixels != 224]


def shapes(features: Sequence[Tensor]) -> str:
    assert all(f.shape[2] == f.shape[3] for f in features)
    return " ".join(f"{f.shape[1]}@{f.shape[2]}" for f in features)


def images(pixels: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


def warmed(name: str) -> nn.Module:
    """A network whose batch norms have non-trivial scales, shifts and statistics, in eval mode."""
    torch.manual_seed(0)
    model = create_model(name, 5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.3)
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", list_models())
def test_features_are_what_the_table_says(name: str) -> None:
    pixels, expected = TAPS[name]
    model, x = warmed(name), images(pixels, 1 if pixels == 224 else 2)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        plain = model(x)
        logits, post = forward_features(model, x)
        pre_logits, pre = forward_features(model, x, pre_activation=True)
        map_logits, maps = forward_maps(model, x)
    for other in (logits, pre_logits, map_logits):
        assert torch.equal(other, plain)
    assert shapes(post) == shapes(pre) == expected
    assert torch.equal(pre[-1], post[-1])
    assert classifier(model)(post[-1].flatten(1)).equal(plain)
    for b, a in zip(pre[:-1], post[:-1], strict=True):
        assert (b < 0).any()
        if name == "mobilenetv2":  # linear blocks
            assert torch.equal(a, b)
        elif not name.startswith("wrn"):
            assert torch.equal(a, b.relu())
    if name.startswith("wrn"):
        norms = [model.stages[1][0].bn1, model.stages[2][0].bn1, model.bn]
        for b, a, norm in zip(pre[:-1], post[:-1], norms, strict=True):
            mean, var = (s[:, None, None] for s in (norm.running_mean, norm.running_var))
            scale, shift = (s.detach()[:, None, None] for s in (norm.weight, norm.bias))
            torch.testing.assert_close(b, (a - mean) / (var + 1e-5).sqrt() * scale + shift)
    bias = classifier(model).bias.detach()
    assert maps.shape[:2] == plain.shape
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        plain, maps = forward_maps(copy.deepcopy(model).double(), x.double())
    torch.testing.assert_close(maps.mean((2, 3)) + bias.double(), plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_every_side_but_the_pooled_doubles_at_twice_the_pixels(name: str) -> None:
    pixels, expected = TAPS[name]
    doubled = [
        tap if tap.endswith("@1") else f"{tap.split('@')[0]}@{2 * int(tap.split('@')[1])}"
        for tap in expected.split()
    ]
    if name.startswith("vgg"):  # the fourth pool
        doubled[3] = "512@4"
    with torch.no_grad():
        _, features = forward_features(warmed(name), images(2 * pixels))
    assert shapes(features) == " ".join(doubled)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_the_stem_from_every_feature_under_autocast(name: str) -> None:
    model = create_model(name, 5).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = forward_features(model, images(16, 2))
    stem = next(model.parameters())
    for output in (logits, *features):
        (grad,) = torch.autograd.grad(output.float().square().sum(), stem, retain_graph=True)
        assert grad.isfinite().all()
        assert grad.any()
    counts = [
        m.num_batches_tracked.item() for m in model.modules() if hasattr(m, "num_batches_tracked")
    ]
    assert set(counts) == {1}  # one pass in train mode moves the statistics once


def test_activation_maps_are_a_weighted_sum() -> None:
    model = create_model("resnet8", 4)
    feature_map = images(6).repeat(1, 22, 1, 1)[:, :64]
    layer = classifier(model)
    with torch.no_grad():
        expected = torch.einsum("cd,bdhw->bchw", layer.weight, feature_map)
        torch.testing.assert_close(class_activation_maps(model, feature_map), expected)


@pytest.mark.parametrize("name", ["resnet8", "wrn_40_1", "vgg8", "shufflenetv1", "mobilenetv2"])
def test_one_graph_when_compiled(name: str) -> None:
    model = warmed(name)
    x = images(32).to(memory_format=torch.channels_last)
    compiled = torch.compile(
        lambda x: forward_features(model, x, pre_activation=True), backend="eager", fullgraph=True
    )
    with torch.no_grad():
        logits, features = compiled(x)
        expected_logits, expected = forward_features(model, x, pre_activation=True)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


def test_a_copy_keeps_its_own_features_and_nothing_stays_behind() -> None:
    model = warmed("resnet8")
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.conv.weight)
    with torch.no_grad():
        _, mine = forward_features(model, images(16))
        _, theirs = forward_features(twin, images(16))
    assert not torch.equal(mine[0], theirs[0])
    assert model.sink.kept is None


def test_a_failed_pass_leaves_no_features_behind() -> None:
    model = create_model("resnet8", 5)
    with pytest.raises(RuntimeError):
        forward_features(model, torch.zeros(1, 4, 16, 16))
    assert model.sink.kept is None
