"""Every pair of the paper with every loss takes real steps, and learns what it is shown."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from ltkd.data import LongTailed, Views
from ltkd.losses import LOSSES
from ltkd.methods import METHODS
from ltkd.models import classifier, create_model
from ltkd.params import SLOW_LEARNERS, RunSpec, live_teacher
from ltkd.teacher import Teacher
from ltkd.train import Trainer, initial_objective

PAIRS = ["resnet32x4-resnet8x4", "resnet32x4-shufflenetv1", "vgg13-vgg8", "vgg13-mobilenetv2",
         "wrn_40_2-wrn_40_1", "wrn_40_2-shufflenetv1", "resnet50-mobilenetv2",
         "resnet34_imagenet-resnet18_imagenet", "resnet50_imagenet-mobilenetv1"]  # fmt: skip
B = CLASSES = 4


def few_images() -> LongTailed:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (B, 3, 32, 32), generator=g).to(torch.uint8)
    labels = torch.arange(B)
    return LongTailed(
        name="cifar100", title="Few", gamma=1.0, class_names=list("abcd"),
        counts=torch.tensor([8, 4, 2, 1]), clipped=torch.zeros(B, dtype=torch.long),
        indices=np.arange(B), train_images=images, train_labels=labels, test_images=images[:2],
        test_labels=labels[:2], views=Views(0, False), mean=(0.5,) * 3, std=(0.25,) * 3,
        sha256="0" * 64)  # fmt: skip


class Once(Teacher):
    """Asked once, since all steps see the same batch in the same view and order does not matter."""

    def answer(self, x, index):
        if not hasattr(self, "told"):
            self.told = super().answer(self.feed.take(torch.arange(B), torch.zeros(B).long()), None)
        if isinstance(self.told, list):
            return [feature[index] for feature in self.told]
        return self.told[index]


@pytest.fixture(scope="module")
def teacher_of():
    """Random teachers whose classifier is solved in closed form, so that they know the images."""
    made: dict[str, nn.Module] = {}

    @torch.no_grad()
    def get(name: str) -> nn.Module:
        if name not in made:
            torch.manual_seed(0)
            model, data, seen = create_model(name, CLASSES), few_images(), []
            x = data.normalise(data.train_images)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None  # its statistics become those of this batch
            model.train()(x)
            head = classifier(model)
            hook = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
            model.eval()(x)
            hook.remove()
            wanted = 4 * torch.eye(CLASSES, dtype=torch.float64)[data.train_labels]
            head.weight.copy_((torch.linalg.pinv(seen[0]) @ wanted).T)
            head.bias.zero_()
            assert torch.equal(model(x).argmax(1), data.train_labels)
            made[name] = model
        return made[name]

    return get


CATKD = {  # beta, the side of the pooled maps, whether each map is normalised
    "resnet32x4-resnet8x4": (15, 2, False), "resnet32x4-shufflenetv1": (600, 4, True),
    "vgg13-vgg8": (4.5, 2, False), "vgg13-mobilenetv2": (15, 2, True),
    "wrn_40_2-wrn_40_1": (1.5, 2, False), "wrn_40_2-shufflenetv1": (80, 4, True),
    "resnet50-mobilenetv2": (40, 2, True),
    "resnet34_imagenet-resnet18_imagenet": (0.5, 4, False),
    "resnet50_imagenet-mobilenetv1": (10, 2, True),
}  # fmt: skip
DKD_BETA = dict(zip(PAIRS, (8, 8, 6, 6, 6, 8, 8, 0.5, 2), strict=True))
REVIEW_WEIGHT = dict(zip(PAIRS, (5,) * 7 + (1, 8), strict=True))


@pytest.mark.parametrize("pair", PAIRS)
def test_the_arguments_are_those_that_the_official_code_has(pair):
    """KD, DKD, ReviewKD, DIST and CAT-KD for each pair: weights, temperatures, warm-up's part."""
    large = "imagenet" in pair
    warmup, temperature = (0, 1) if large else (1 / 12, 4)
    beta, pool, normalize = CATKD[pair]
    wanted = {
        "kd": {"ce_weight": 0.5 if large else 0.1, "kd_weight": 0.5 if large else 0.9,
               "temperature": temperature},
        "dkd": {"ce_weight": 1, "kd_weight": 1, "warmup": warmup, "alpha": 1,
                "beta": DKD_BETA[pair], "temperature": temperature},
        "reviewkd": {"ce_weight": 1, "kd_weight": REVIEW_WEIGHT[pair], "warmup": warmup},
        "dist": {"ce_weight": 1, "kd_weight": 1, "beta": 2, "gamma": 2, "temperature": temperature},
        "catkd": {"ce_weight": 1, "kd_weight": 1, "beta": beta, "pool": pool,
                  "normalize": normalize},
        "ltkd": {"ce_weight": 1, "kd_weight": 1, "alpha": 1, "beta": 1, "temperature": 4,
                 "rebalance": True},
    }  # fmt: skip
    for method, expected in wanted.items():
        assert METHODS[method].defaults(*pair.split("-")) == pytest.approx(expected)


# Our rivals have the losses of the others, with other shifts and weights: one pair is enough.
OURS = [name for name, about in METHODS.items() if about.ours]
THEIRS = [name for name in METHODS if name not in ("teacher", *OURS)]
CASES = [*product(PAIRS, THEIRS), *product(["vgg13-vgg8"], OURS)]


def test_every_loss_is_among_those_that_every_pair_learns_by():
    assert {METHODS[name].loss for name in THEIRS} == {None, *LOSSES}


def trained(pair, method, teacher, tmp_path, epochs, peak=None, **args):
    """The history of so many epochs of one step each, the student's last state and its first."""
    name, student = pair.split("-")
    about, data = METHODS[method], few_images()
    with_teacher = {"teacher": name, "teacher_source": "live"} if about.loss else {}
    args |= {"warmup": 0.0} if "warmup" in about.args else {}
    slow = student in SLOW_LEARNERS  # a fifth of the rate
    lr = peak or (0.03 if method == "dkd" and not slow else 0.1)  # dkd's beta is 6 or 8
    spec = RunSpec(dataset="cifar100", gamma=1.0, student=student, method=method, method_args=args,
                   groups=3 if about.uses_groups else None, epochs=epochs, batch=B, lr=lr,
                   schedule="one_cycle", clip_norm=20, eval_every=20, **with_teacher)  # fmt: skip
    feed = data.feed(torch.device("cpu"))
    asked = Once(teacher, spec, feed, None) if teacher else None
    objective = initial_objective(spec, data, teacher)
    trainer = Trainer(spec, data, objective, asked, feed, tmp_path / "checkpoint")
    start = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    done = trainer.train(lambda: False, lambda _: None)
    return done.history, done.state, start


@pytest.mark.parametrize(("pair", "method"), CASES)
def test_every_pair_takes_steps_with_every_loss(pair, method, teacher_of, tmp_path):
    name, loss = pair.split("-")[0], METHODS[method].loss
    assert live_teacher(method, "cifar100", None) == (method == "reviewkd")
    model = teacher_of(name) if loss else None
    before = {k: v.clone() for k, v in model.state_dict().items()} if model else {}
    history, state, start = trained(pair, method, model, tmp_path, epochs=2)
    for row in history:
        assert math.isfinite(row["loss"])
        assert row["loss"] == pytest.approx(row["label_loss"] + row["distillation_loss"])
        assert (row["distillation_loss"] > 0) == bool(loss)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), f"the teacher's {key} moved"
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in start.items()}


SMALL = "resnet20-resnet8"  # one pair is enough for what a loss does, and this one is fast
# A method for each distillation term and each place where the prior enters it.
TERMS = {(m.loss, m.adjust): name for name, m in reversed(METHODS.items()) if m.loss}.values()


@pytest.mark.parametrize("method", [*THEIRS, *OURS])
def test_every_method_learns_its_labels(method, teacher_of, tmp_path):
    model = teacher_of("resnet20") if METHODS[method].loss else None
    history, *_ = trained(SMALL, method, model, tmp_path, epochs=20)
    assert history[-1]["label_loss"] < 0.5 * history[0]["label_loss"]


@pytest.mark.parametrize("method", TERMS)
def test_every_distillation_term_is_learned_alone(method, teacher_of, tmp_path):
    """Without the label's term only its own gradient can bring it down, and turn the student."""
    history, state, start = trained(SMALL, method, teacher_of("resnet20"), tmp_path, epochs=20,
                                    peak=0.02, ce_weight=0.0)  # fmt: skip
    assert {row["label_loss"] for row in history} == {0.0}
    assert history[-1]["distillation_loss"] < 0.7 * history[0]["distillation_loss"]
    for kernel in ("conv.weight", "stages.2.0.conv2.weight"):  # decay alone turns none
        first, last = (s[kernel].double().flatten() for s in (start, state))
        assert torch.cosine_similarity(first, last, 0) < 0.9999
