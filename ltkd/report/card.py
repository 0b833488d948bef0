"""The best student of a study as a file of its own, with a model card beside it."""

from pathlib import Path

from ..files import many, sha256, write_atomic
from ..methods import METHODS
from ..params import ParameterError
from ..study import Study
from . import tables
from .intervals import METRICS, t_interval

_CARD = """\
---
library_name: ltkd
license: mit
pipeline_tag: image-classification
datasets: [{dataset}]
metrics: [accuracy]
tags: [knowledge-distillation, long-tailed-recognition]
---

# {network}, {label}: {title}, imbalance factor {gamma:g}

{network} trained for {epochs} epochs{teacher}: the highest accuracy over all classes, mean of
{n}, of the methods named below; the network is that of seed {seed}, whatever its own accuracy.

```python
from ltkd import load_model
from torchvision.transforms.v2.functional import normalize
model = load_model("outputs/{study}/best/model.safetensors")
logits = model(normalize(images, {mean}, {std}))
```

`images` is a float tensor [N, 3, {side}, {side}] from 0 to 1; the network comes in fp32 and in
evaluation mode, and `logits.argmax(1)` is the class, in the order of the data set's own list.

## How good it is

Top-1 accuracy in percent on the {tested} test images, last epoch; head, medium and tail are
means over classes. The interval is Student's t at 95 %, over seeds, for one split and one teacher.

| | all | head | medium | tail |
|---|---|---|---|---|
| this network | {own} |
| the method, mean ± half the interval (seeds) | {mean_of} |

Picked by these very test images, so that its own number is a little high, from these methods of the
study `{study}`, with their accuracy over all classes: {others}.

## How it was made

- Training images: {images}, {most} to {least} a class, {title}{cut}; which
  ones is the study's split (sha256 {split}).
- Method: {label} ({reference}); {settings}.
- Schedule: {schedule}, peak rate {lr:g}, batch {batch}, weight decay {weight_decay:g}, {precision}.
- Hardware: {hardware}; commit {commit}. Run `{run}`, whose record holds the rest.
- Weights: safetensors, sha256 {sha}.

## What it is for

Checking this study, and a start for work on long-tailed recognition: a small network on small
images, one split, one teacher, no product.
"""


def write_card(study: Study) -> Path:
    """<study>/best/: model.safetensors and README.md, of the method with the best mean accuracy.

    Among the methods of the first gamma of which every seed is there; no run is made. Raises
    ParameterError where there is none, FileNotFoundError where its network is not kept, DataError
    where the data is absent.
    """
    p = study.parameters
    found = [study.row_of(method) for method in p.methods]
    specs = [spec for some, _ in found for spec in some if spec.gamma == p.gammas[0]]
    records = {record.run: record for spec in specs if (record := study.store.get(spec))}
    own = [rows[rows["run"].isin(records)] for _, rows in found if len(rows)]
    parts = [part for rows in own for _, part in rows.groupby("pair", sort=False)]
    whole = [part for part in parts if len(part) == len(p.seeds)]
    if not whole:
        raise ParameterError(f"{study.name}: no method has all its {len(p.seeds)} seeds; "
                             "make them with ltkd run")  # fmt: skip
    best = max(whole, key=lambda part: float(part["all"].mean()))
    row = best.sort_values("seed").iloc[0]
    record = records[row["run"]]
    spec, about, data = record.spec, record.values["data"], study.data(p.gammas[0])
    study.store.load_model(spec)  # whole, and the one that the record speaks of
    weights = study.store.model_path(spec).read_bytes()
    folder = study.folder / "best"
    intervals = [t_interval(best[metric]) for metric in METRICS]
    others = [f"{tables.marked(part['label'].iloc[0])} ({part['pair'].iloc[0]}) "
              + t_interval(part["all"]).plus_minus() for part in whole]  # fmt: skip
    kind = "held-out" if spec.holdout else "balanced" * (spec.dataset != "folder")
    args = {"groups": spec.groups} if spec.groups else {}
    settings = ", ".join(f"{k} {v:g}" for k, v in (args | spec.method_args).items())
    text = _CARD.format(
        dataset=spec.dataset, network=spec.student, label=METHODS[spec.method].label,
        title=data.title, gamma=row["gamma"], epochs=spec.epochs, study=study.name,
        teacher=f" with a {spec.teacher} teacher" if spec.teacher else " without a teacher",
        n=many(best, "seed"), seed=spec.seed,
        mean=list(data.mean), std=list(data.std), side=data.test_images[0].shape[-1],
        tested=f"{len(data.test_labels)} {kind}",
        own=" | ".join(f"{row[metric]:.1f}" for metric in METRICS),
        mean_of=" | ".join(gap.plus_minus() for gap in intervals), others="; ".join(others),
        cut=" cut to an exponential profile" if spec.gamma else ", its classes as they are",
        images=sum(about["counts"]), most=max(about["counts"]), least=min(about["counts"]),
        split=about["split_sha256"][:16], settings=settings or "nothing to set",
        reference=METHODS[spec.method].reference,
        schedule=spec.schedule, lr=spec.peak_lr,
        batch=spec.batch, weight_decay=spec.weight_decay, precision=spec.precision,
        hardware=record.values["hardware"], commit=record.values["code"]["commit"],
        run=record.run, sha=sha256(weights),
    )  # fmt: skip
    (folder / "README.md").unlink(missing_ok=True)  # it speaks of one network alone
    write_atomic(folder / "model.safetensors", weights)
    write_atomic(folder / "README.md", text)
    return folder / "README.md"
