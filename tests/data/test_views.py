"""Views against torchvision's own crop, pad and flip, image by image."""

import torch
import torchvision.transforms.functional as tv

from ltkd.data import Views


def test_every_view_is_torchvisions_crop_after_zero_padding():
    views = Views(4, flip=True)
    assert views.count == 162
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    padded = views.pad(images)
    for view in range(views.count):
        seen = views.take(padded, torch.arange(3), torch.full((3,), view))
        dy, dx, flipped = view % 81 // 9, view % 9, view >= 81
        expected = tv.crop(tv.pad(images, [4]), dy, dx, 32, 32)
        assert torch.equal(seen, tv.hflip(expected) if flipped else expected)


def test_a_batch_takes_each_image_in_its_own_view():
    views = Views(2, flip=False)
    assert views.count == 25
    images = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8)
    padded, index, view = views.pad(images), torch.tensor([8, 0, 3]), torch.tensor([24, 0, 7])
    batch = views.take(padded, index, view)
    for row, (i, v) in enumerate(zip(index.tolist(), view.tolist(), strict=True)):
        assert torch.equal(batch[row], tv.crop(tv.pad(images[i], [2]), v // 5, v % 5, 16, 16))


def test_the_identity_view_changes_nothing():
    views = Views(4, flip=True)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    middle = torch.full((5,), 4 * 9 + 4)
    same = views.take(views.pad(images), torch.arange(5), middle)
    assert torch.equal(same, images)
