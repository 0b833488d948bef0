"""What rebalancing does to a teacher, and how each class is pulled: behind explore.ipynb.

Works without any trained network: a made-up teacher is right about its images and leans on the
prior, as one trained on long-tailed data does.
"""

import base64
import html
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import long_tailed_counts, stream
from ..groups import class_groups
from ..losses import KDLoss, LTKDLoss
from ..losses.decomposition import group_log_probs
from ..losses.ltkd import log_batch_mass, rebalance
from ..params import network_label
from ..study import Study
from . import figures, page

CLASSES, LARGEST, EACH = 100, 500, 10  # of the made-up set; images of a class in the batch
MADE_UP = "made up"


def made_up_teacher(counts: Tensor) -> Tensor:
    """Logits [EACH C, C] about EACH images of every class: 4 for the right class, plus the log of
    the classes' shares in training, plus noise."""
    labels = torch.arange(len(counts)).repeat_interleave(EACH)
    noise = torch.from_numpy(stream("explore").standard_normal((len(labels), len(counts))))
    right = torch.nn.functional.one_hot(labels, len(counts))
    return noise + 4 * right + (counts / counts.sum()).log()


def scene(
    logits: Tensor, counts: Tensor, n_groups: int, temperature: float, alpha: float, beta: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(mass, pull) of a teacher's logits [B, C] about one batch.

    mass  a row a group and stage (the teacher, rebalanced): share of the batch in percent
    pull  a row a class and method (kd, ltkd): minus the gradient of the loss by the class's logit,
          summed over the batch, of a student that knows nothing yet (all logits 0)
    """
    groups = class_groups(counts, n_groups)
    biased = group_log_probs(logits, groups, n_groups, temperature)[0]
    stages = {"the teacher": biased, "rebalanced": rebalance(biased, log_batch_mass(biased))}
    mass = [
        {"group": g, "stage": stage, "share": 100 * share}
        for stage, log_p in stages.items()
        for g, share in enumerate(log_p.exp().mean(0).tolist())
    ]
    order, pull = counts.argsort(descending=True, stable=True), []
    for method, loss in (
        ("kd", KDLoss(temperature)),
        ("ltkd", LTKDLoss(groups, alpha, beta, temperature)),
    ):
        student = torch.zeros_like(logits, requires_grad=True)
        loss(student, logits).backward()
        assert student.grad is not None
        down = -student.grad.sum(0)[order]
        pull += [{"method": method, "rank": r, "pull": v} for r, v in enumerate(down.tolist())]
    return pd.DataFrame(mass), pd.DataFrame(pull)


def teachers(study: Study) -> dict[str, tuple[Tensor, Tensor] | None]:
    """What can be looked at: the made-up teacher (None), and the study's own where it is trained:
    its logits about EACH test images of every class, and the training images a class."""
    found: dict[str, tuple[Tensor, Tensor] | None] = {MADE_UP: None}
    for pair in study.pairs:
        name = f"{network_label(pair.teacher)} of {study.name}"
        if name not in found and study.has_teacher(pair):
            data = study.data()
            labels = data.test_labels.numpy()
            first = [np.flatnonzero(labels == c)[:EACH] for c in range(len(data.class_names))]
            images = data.test_images[torch.from_numpy(np.concatenate(first))]
            found[name] = study.logits(study.teacher(pair)[0], images).double(), data.counts
    return found


def picture(
    title: str,
    own: tuple[Tensor, Tensor] | None,
    gamma: float,
    n_groups: int,
    temperature: float,
    alpha: float,
    beta: float,
) -> dict[str, Any]:
    """What ``page.show`` takes: the scene of a teacher (``own``: its logits and counts), or of the
    made-up one at gamma."""
    counts = own[1] if own else long_tailed_counts(LARGEST, CLASSES, gamma)
    logits = own[0] if own else made_up_teacher(counts)
    n_groups = min(n_groups, len(counts))
    mass, pull = scene(logits, counts, n_groups, temperature, alpha, beta)
    low, high = (mass.groupby("stage")["share"].agg(f)["the teacher"] for f in ("min", "max"))
    alt = (
        f"Teacher: {title}. Above: share of a balanced batch in each of {n_groups} groups, "
        f"{low:.1f} to {high:.1f} percent as the teacher has it and "
        "almost even after rebalancing. Below: how KD and LTKD pull the logit of each class, from "
        "the largest class to the smallest"
    )
    figure = figures.rebalancing(mass, pull, f"teacher: {title}")
    return {
        "figure": figure,
        "alt": alt,
        "name": f"rebalancing-{title.lower().replace(' ', '-')}",
        "data": pull,
    }


def panel(study: Study) -> Any:
    """Sliders over ``picture``: needs a kernel, and redraws when one is moved."""
    import ipywidgets as widgets

    found = teachers(study)
    wide: dict[str, Any] = {"style": {"description_width": "8em"}, "continuous_update": False}
    controls: dict[str, Any] = {
        "title": widgets.Dropdown(
            options=list(found), description="teacher", style=wide["style"]),
        "gamma": widgets.FloatLogSlider(
            100, base=10, min=0, max=2.3, step=0.1, description="gamma", **wide),
        "n_groups": widgets.IntSlider(3, 1, 10, description="groups", **wide),
        "temperature": widgets.FloatSlider(
            4, min=1, max=16, step=0.5, description="temperature", **wide),
        "alpha": widgets.FloatSlider(1, min=0, max=4, step=0.25, description="alpha", **wide),
        "beta": widgets.FloatSlider(1, min=0, max=4, step=0.25, description="beta", **wide),
    }  # fmt: skip
    # Not an Output widget: that one talks back to the kernel, and headless runs can hang on it.
    view = widgets.HTML()

    def redraw(_: Any = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        own = found[values["title"]]
        controls["gamma"].disabled = own is not None  # a trained teacher has the gamma it has
        drawn = picture(own=own, **values)
        source = base64.b64encode(page.svg(drawn["figure"]).encode()).decode()
        alt = html.escape(drawn["alt"])
        view.value = f'<img alt="{alt}" src="data:image/svg+xml;base64,{source}">'

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([*controls.values(), view])
