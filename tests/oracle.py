"""The training loop of a textbook, kept as the oracle: a DataLoader, image by image, live teacher.

Slow and plain on purpose; the library has no part of it. tests/test_oracle.py holds the library's
trainer against it, and tests/bench.py its speed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

T = 4.0


class Seen(Dataset):
    """(position, image, label): each image padded, cropped, flipped and normalised by itself."""

    def __init__(self, data, view, dtype=torch.float32):
        self.data, self.view, self.dtype = data, view, dtype

    def __len__(self):
        return len(self.data.train_labels)

    def __getitem__(self, i):
        data, shift = self.data, self.data.views.shift
        flipped, place = divmod(int(self.view[i]), (2 * shift + 1) ** 2)
        top, left = divmod(place, 2 * shift + 1)
        image = data.train_images[i].numpy()
        height, width = image.shape[1:]
        image = np.pad(image, ((0, 0), (shift, shift), (shift, shift)))
        image = image[:, top : top + height, left : left + width]
        image = image[:, :, ::-1] if flipped else image
        x = torch.from_numpy(image.copy()).to(self.dtype) / 255
        mean, std = (torch.tensor(v, dtype=self.dtype).view(3, 1, 1) for v in (data.mean, data.std))
        return i, (x - mean) / std, int(data.train_labels[i])


def kl(teacher, student):
    """T^2 KL(teacher || student) at T, mean over the batch."""
    p, q = (teacher / T).softmax(1), (student / T).log_softmax(1)
    return T**2 * F.kl_div(q, p, reduction="batchmean")


def ltkd(teacher, student, groups):
    """T^2 (cross-group term, the teacher rebalanced by batch sums, + within-group terms)."""
    member = F.one_hot(groups).to(student.dtype)
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    p_g, q_g = p @ member, q @ member
    mass = p_g.sum(0)
    even = p_g * (mass.mean() / mass)
    even = even / even.sum(1, keepdim=True)
    cross = (even * (even / q_g).log()).sum(1)
    p_in, q_in = p / p_g[:, groups], q / q_g[:, groups]
    within = (p_in * (p_in / q_in).log()).sum(1)
    return T**2 * (cross + within).mean()


def objective(method, logits, told, labels, counts, groups):
    """The training loss of a few methods, written out."""
    ce = F.cross_entropy(logits, labels)
    if method == "student":
        return ce
    if method == "kd":
        return 0.1 * ce + 0.9 * kl(told, logits)
    if method == "ltkd":
        return ce + ltkd(told, logits, groups)
    counts = counts.double()
    prior = (counts / counts.sum()).log().to(logits.dtype)
    if method == "kd_adjusted":
        return ce + kl(told - prior, logits)
    if method == "balanced_softmax":
        return F.cross_entropy(logits + counts.log().to(logits.dtype), labels)
    raise ValueError(method)


def train(data, student, method, *, order, view, rates, teacher=None, rows=None, batch=32,
          dtype=torch.float32, workers=0, device="cpu", clip=None, decay=5e-4):  # fmt: skip
    """A generator of the loss of each step of one epoch, then the next in the same order.

    order    positions of the training images in this epoch;  view  the view of each image
    rates    learning rate of each step
    rows     the teacher's answers by position [N, C], in place of the live teacher
    clip     the gradient's largest norm, over all parameters;  decay  of the weights
    """
    optimizer = torch.optim.SGD(student.parameters(), 1.0, momentum=0.9, weight_decay=decay)
    more = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(Seen(data, view, dtype), batch, sampler=order, drop_last=True, **more)
    groups, step = data.groups(3).to(device), 0
    student.train()
    while True:
        for i, x, y in loader:
            x, y, told = x.to(device), y.to(device), None
            if rows is not None:
                told = rows[i].to(device, dtype)
            elif teacher is not None:
                with torch.no_grad():
                    told = teacher(x)
            loss = objective(method, student(x), told, y, data.counts.to(device), groups)
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.zero_grad()
            loss.backward()
            if clip:
                norm = sum(p.grad.square().sum() for p in student.parameters()).sqrt()
                for p in student.parameters():
                    p.grad *= min(1.0, clip / (norm.item() + 1e-6))
            optimizer.step()
            step += 1
            yield loss.item()
            if step == len(rates):
                return
