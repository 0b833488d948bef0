"""Sets of image files, against Pillow used directly: real images, and small trees made here."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, get_start_method

import numpy as np
import pytest
import torch
from PIL import Image

import ltkd
from ltkd import Study, cli, files
from ltkd.data import DataError, folders, load, long_tailed_counts, longtail, resolve
from ltkd.data.views import Crops
from ltkd.params import Images, ParameterError, RunSpec

# Torch warns where more workers are asked for than there are cores; what they decode is the same.
on_any_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def forget():
    """What is found is kept for a process; each test, and each call of this, begins a new one."""

    def clear():
        folders.find.cache_clear()
        longtail._load.cache_clear()

    clear()
    return clear


def smooth(seed, width=250, height=230):
    """A picture with some structure: 4x4 random colours, enlarged."""
    pixels = np.random.RandomState(seed).randint(256, size=(4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def tree(folder, train=(4, 3, 2), test="val", each=1, width=250, suffix=".JPEG"):
    """train/<class>/ with that many images a class, and one or more test images of each."""
    for part, counts in (("train", train), (test, [each] * len(train))):
        for c, count in enumerate(counts):
            (folder / part / f"n{c}").mkdir(parents=True)
            for i in range(count):
                image = smooth(100 * c + i + (part != "train") * 50, width + 10 * i)
                image.save(folder / part / f"n{c}" / f"{i}{suffix}")
    return folder


def by_pillow(path, side, size):
    """Shorter side to ``side``, centre crop of ``size``: uint8 [3, size, size], Pillow alone."""
    with Image.open(path) as stored:  # by way of RGBA, where a palette's transparency is dropped
        image = stored.convert("RGBA" if stored.mode == "P" else "RGB").convert("RGB")
    w, h = image.size
    short = min(w, h)
    image = image.resize((w * side // short, h * side // short), Image.Resampling.BILINEAR)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def listed_for_test(images, folder, part, *more):
    """``images``, tested on the first image of each class in that part of a tree, and on more."""
    lines = [*(f"{part}/n{c}/0.JPEG {c}" for c in range(3)), *more]
    (folder / "test.txt").write_text("\n".join(lines))
    return images.model_copy(update={"test_list": "test.txt"})


FOLDER = Images(folder="birds", size=32)
PREPARED = "birds.ltkd/32"

# ---- the real Tiny ImageNet, or the part of it that is there


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    real, root = files.data_root() / "tiny-imagenet-200", tmp_path_factory.mktemp("tiny")
    if not (real / "train").is_dir():
        pytest.skip(f"Tiny ImageNet is not at {real}")
    (root / real.name).symlink_to(real)
    return root


def test_tiny_imagenet_is_what_its_files_are(tiny):
    real, data = tiny / "tiny-imagenet-200", load("tiny_imagenet", None, 0, tiny)
    wnids = sorted(os.listdir(real / "train"))
    paths = [p for w in wnids for p in sorted((real / "train" / w / "images").iterdir())]
    assert len(wnids) == len(data.class_names) == len(data.counts) == 200
    assert data.train_images.shape == (len(paths), 3, 64, 64)
    assert data.train_labels.tolist() == [wnids.index(p.parent.parent.name) for p in paths]
    modes = set()
    for i in range(0, len(paths), len(paths) // 400):
        with Image.open(paths[i]) as image:
            modes.add(image.mode)
            expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert (data.train_images[i].numpy() == expected).all()
    assert modes == {"RGB", "L"}
    rows = [r.split() for r in (real / "val/val_annotations.txt").read_text().splitlines()]
    own = sorted((wnids.index(wnid), file) for file, wnid, *_ in rows)
    assert data.test_labels.tolist() == [c for c, _ in own]
    expected = by_pillow(real / "val/images" / own[7][1], 64, 64)
    assert (data.test_images[7].numpy() == expected).all()
    assert data.views.count == 17 * 17 * 2
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data.gamma == 1.0
    words = dict(r.split("\t") for r in (real / "words.txt").read_text().splitlines())
    assert data.class_names[0] == words[wnids[0]].split(",")[0]


def test_tiny_imagenet_lt_follows_the_profile_of_its_largest_class(tiny):
    whole = load("tiny_imagenet", None, 0, tiny)
    data = load("tiny_imagenet", 10.0, 0, tiny)
    asked = long_tailed_counts(int(whole.counts.max()), 200, 10.0)
    assert data.counts.tolist() == asked.tolist() == data.train_labels.bincount().tolist()
    assert data.title == "TinyImageNet-LT"
    assert data.clipping == ""
    assert torch.equal(data.train_images, whole.train_images[data.indices])
    assert data.sha256 == resolve("tiny_imagenet", None, tiny).sha256
    if whole.counts.max() < 20:
        with pytest.raises(DataError, match=r"keeps none of its 10 images at gamma 20"):
            load("tiny_imagenet", 20.0, 0, tiny)


# ---- small trees


def test_images_of_any_kind_become_rgb_and_square(tmp_path):
    folder = tree(tmp_path / "birds", test="test", suffix=".jpg")
    path = folder / "train/n0"
    smooth(1).convert("L").save(path / "grey.png")
    smooth(2).convert("P").save(path / "palette.BMP")
    smooth(3).convert("CMYK").save(path / "cmyk.jpeg")
    smooth(4, 40, 90).save(path / "tall.webp")
    smooth(5, 32, 32).save(path / "exact.png")
    clear = smooth(6).convert("P")
    clear.info["transparency"] = bytes(range(256))
    clear.save(path / "transparent.png")
    deep = np.random.RandomState(7).randint(65536, size=(32, 32)).astype(np.uint16)
    Image.fromarray(deep).save(path / "sixteen_bits.png")
    (path / "notes.txt").write_text("not an image")
    data = load("folder", None, 0, tmp_path, FOLDER)
    assert data.title == "birds"
    assert data.counts.tolist() == [11, 3, 2]
    assert data.gamma == 5.5
    names = sorted(p.name for p in path.iterdir() if p.suffix != ".txt")
    for i, name in enumerate(names):
        expected = by_pillow(path / name, 32, 32)
        if name == "sixteen_bits.png":  # which Pillow clips, where the upper byte is meant
            expected = np.broadcast_to(deep // 256, (3, 32, 32)).astype(int)
        assert np.abs(data.train_images[i].numpy().astype(int) - expected).max() == 0, name
    assert data.views.count == 162


def test_counts_are_clipped_to_what_a_class_holds_and_say_so(tmp_path):
    tree(tmp_path / "birds", train=(3, 6, 2, 3))
    data = load("folder", 2.0, 0, tmp_path, FOLDER)
    assert long_tailed_counts(6, 4, 2.0).tolist() == [6, 4, 3, 3]
    assert data.counts.tolist() == [3, 4, 2, 3]
    assert data.clipped.tolist() == [3, 0, 1, 0]
    assert data.clipping == "4 images fewer than the profile asks, in 2 classes"
    assert (data.title, data.gamma) == ("birds-LT", 2.0)


@on_any_cores
def test_one_view_of_one_image_is_the_same_whoever_decodes_it(tmp_path):
    tree(tmp_path / "imagenet", each=2)
    data = load("imagenet", None, 0, tmp_path)
    index, view = torch.tensor([5, 0, 8, 5]), torch.tensor([7, 2**31 - 2, 7, 8])
    state = torch.random.get_rng_state()
    seen = data.seen(index, view)
    assert seen.shape == (4, 3, 224, 224)
    assert seen.dtype == torch.uint8
    assert not torch.equal(seen[0], seen[3])
    for workers in (0, 2):
        parts = [*data.train_images.batches([index[:3], index[3:]], [view[:3], view[3:]], workers)]
        assert torch.equal(torch.cat(parts), seen)
    feed = data.feed(torch.device("cpu"))
    of_all = torch.arange(9) + 3
    (x,) = feed.ahead([index], of_all)
    assert torch.equal(x, feed.take(index, of_all[index]))
    assert torch.equal(x, data.normalise(data.seen(index, of_all[index])))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(state, torch.random.get_rng_state())


def in_a_pool(root):
    """A batch decoded by two workers, and the start method of processes there."""
    data = load("imagenet", None, 0, root)
    (batch,) = data.train_images.batches([[0, 1]], [[3, 4]], 2)
    return batch.numpy(), get_start_method()


def test_a_process_of_the_pool_has_workers_of_its_own(tmp_path):
    tree(tmp_path / "imagenet")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        batch, method = pool.submit(in_a_pool, tmp_path).result()
    assert method == "spawn"
    data = load("imagenet", None, 0, tmp_path)
    assert (batch == data.seen(torch.tensor([0, 1]), torch.tensor([3, 4])).numpy()).all()


def test_a_crop_is_part_of_its_image_or_of_its_mirror():
    ramp = np.zeros((100, 120, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(120), np.arange(100)[:, None]
    image, mirrored, areas = Image.fromarray(ramp), 0, []
    for view in range(60):
        seen = np.asarray(Crops(224).take(image, 0, view)).astype(int)
        across, down = seen[0, :, 0], seen[:, 0, 1]
        mirrored += across[0] > across[-1]
        assert (np.diff(across) * (1 if across[-1] > across[0] else -1) >= 0).all()
        assert (np.diff(down) >= 0).all()
        areas.append((np.ptp(across) + 1) * (np.ptp(down) + 1) / 12000)
    assert 15 < mirrored < 45
    assert 0.06 < min(areas) < 0.2 < 0.8 < max(areas) <= 1


def test_imagenets_test_images_are_centre_crops(tmp_path):
    folder = tree(tmp_path / "imagenet", each=3)
    smooth(9).convert("L").save(folder / "val/n1/0.JPEG")
    data = load("imagenet", None, 0, tmp_path)
    paths = [folder / f"val/n{c}/{i}.JPEG" for c in range(3) for i in range(3)]
    expected = torch.from_numpy(np.stack([by_pillow(path, 256, 224) for path in paths]))
    images = data.test_images
    assert len(images) == 9
    assert torch.equal(images[3], expected[3])
    assert torch.equal(images[2:5], expected[2:5])
    assert torch.equal(images[torch.tensor([8, 0])], expected[[8, 0]])
    assert images[[]].shape == (0, 3, 224, 224)
    assert [len(batch) for batch in images.split(4)] == [4, 4, 1]
    assert torch.equal(torch.cat([*images.split(4)]), expected)


# ---- made once, whole or absent

KILLED = """
import sys, time
from ltkd.data import folders, load
from ltkd.params import Images
folders.BLOCK, write = 4, folders.write_atomic
def slow(path, data):
    write(path, data)
    print(path.name, flush=True)
    time.sleep(1)
folders.write_atomic = slow
load("folder", None, 0, sys.argv[1], Images(folder="birds", size=32))
"""


def test_a_kill_costs_a_block_and_changes_no_byte(tmp_path, monkeypatch):
    tree(tmp_path / "a/birds", train=(9, 8, 7))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    work = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a"], stdout=subprocess.PIPE)
    for _ in range(3):
        assert work.stdout.readline() == b"progress.json\n"
    work.send_signal(signal.SIGKILL)
    work.wait()
    work.stdout.close()
    assert not (tmp_path / "a" / PREPARED / "manifest.json").exists()
    decoded = []
    plain = folders.decode
    monkeypatch.setattr(folders, "decode", lambda *a: (decoded.append(a), plain(*a))[1])
    load("folder", None, 0, tmp_path / "a", FOLDER)
    assert len(decoded) == 27 - 12
    load("folder", None, 0, tmp_path / "b", FOLDER)
    for name in ("train.npy", "test.npy", "manifest.json"):
        a, b = (tmp_path / x / PREPARED / name for x in "ab")
        assert a.read_bytes() == b.read_bytes()
    left = {p.name for p in (tmp_path / "a" / PREPARED).iterdir()}
    assert left == {"train.npy", "test.npy", "manifest.json", "stamps.json"}


def test_prepared_files_suffice_and_follow_a_changed_folder(tmp_path, capsys, forget):
    folder = tree(tmp_path / "birds")
    first = load("folder", None, 0, tmp_path, FOLDER)
    made = (tmp_path / PREPARED / "train.npy").stat().st_mtime_ns
    forget()
    assert resolve("folder", FOLDER, tmp_path).sha256 == first.sha256
    assert (tmp_path / PREPARED / "train.npy").stat().st_mtime_ns == made
    smooth(77).save(folder / "train/n2/more.png")
    forget()
    second = load("folder", None, 1, tmp_path, FOLDER)
    assert second.counts.tolist() == [4, 3, 3]
    assert second.sha256 != first.sha256
    with (tmp_path / PREPARED / "train.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"\x00\x01\x02\x03\x04")
    forget()
    assert resolve("folder", FOLDER, tmp_path).sha256 == second.sha256
    assert "train.npy: damaged" in capsys.readouterr().err
    assert (tmp_path / PREPARED / "train.npy.damaged").exists()
    shutil.rmtree(folder)
    forget()
    assert resolve("folder", FOLDER, tmp_path).sha256 == second.sha256
    assert len(load("folder", None, 2, tmp_path, FOLDER).train_labels) == 10


def test_files_that_stay_files_are_listed_anew_only_when_a_folder_changes(
    tmp_path, monkeypatch, forget
):
    folder = tree(tmp_path / "imagenet")
    first = resolve("imagenet", None, tmp_path)
    assert (first.folder, first.size) == ("imagenet", 224)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "listing", lambda *_: pytest.fail("walked again"))
        assert resolve("imagenet", None, tmp_path) == first
    smooth(78).save(folder / "train/n2/more.JPEG")
    forget()
    assert resolve("imagenet", None, tmp_path).sha256 != first.sha256
    assert len(load("imagenet", None, 0, tmp_path).train_labels) == 10


def test_absent_files_and_other_files(tmp_path):
    assert resolve("digits", None) is None
    absent = resolve("tiny_imagenet", None, tmp_path, strict=False)
    assert absent == Images(folder="tiny-imagenet-200", size=64)
    with pytest.raises(DataError, match=r"tiny-imagenet-200 is not there.*val_annotations"):
        resolve("tiny_imagenet", None, tmp_path)
    tree(tmp_path / "birds")
    found = resolve("folder", FOLDER, tmp_path)
    assert resolve("folder", found, tmp_path) == found
    other = found.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(DataError, match=r"images.sha256 = 000.*have " + found.sha256):
        load("folder", None, 0, tmp_path, other)


# ---- what is wrong is named


def _truncate(folder):
    path = folder / "train/n1/2.JPEG"
    path.write_bytes(path.read_bytes()[:900])
    return path


def _foreign(folder):
    (folder / "val/n2/0.JPEG").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    return folder / "val/n2/0.JPEG"


def _vast(folder):
    Image.new("1", (8000, 6400)).save(folder / "train/n1/vast.png")
    return folder / "train/n1/vast.png"


def _thin(folder):
    Image.new("1", (60000, 1)).save(folder / "train/n1/thin.png")
    return folder / "train/n1/thin.png"


def _dangling(folder):
    (folder / "train/n1/gone.png").symlink_to("nowhere")
    return folder / "train/n1/gone.png"


@pytest.mark.parametrize("spoil", [_truncate, _foreign, _vast, _thin, _dangling])
def test_a_bad_image_is_named_and_nothing_is_taken_for_whole(tmp_path, spoil):
    path = spoil(tree(tmp_path / "birds"))
    with pytest.raises(DataError) as error:
        load("folder", None, 0, tmp_path, FOLDER)
    assert str(path) in str(error.value)
    if spoil is _foreign:  # a test image: the training images were good
        assert not (tmp_path / PREPARED / "manifest.json").exists()
    else:
        assert os.listdir(tmp_path) == ["birds"]


def test_an_image_that_a_disk_does_not_give_costs_no_decoded_one(tmp_path, monkeypatch):
    tree(tmp_path / "birds", train=(4, 3, 2))
    monkeypatch.setattr(folders, "BLOCK", 4)
    decoded, broken, plain = [], ["n1/1.JPEG"], folders.Image.open

    def opened(path, **how):
        decoded.append(path)
        if any(str(path).endswith(one) for one in broken):
            raise OSError(5, "Input/output error")
        return plain(path, **how)

    monkeypatch.setattr(folders.Image, "open", opened)
    with pytest.raises(DataError, match="Input/output error"):
        load("folder", None, 0, tmp_path, FOLDER)
    broken.clear()
    decoded.clear()
    load("folder", None, 0, tmp_path, FOLDER)
    assert len(decoded) == 12 - 4


@pytest.mark.parametrize("size", [32, 224])
def test_a_copy_is_not_taken_for_its_original(tmp_path, forget, size):
    images = Images(folder="birds", size=size)
    tree(tmp_path / "a/birds")
    load("folder", None, 0, tmp_path / "a", images)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    if size == 224:
        (tmp_path / "b/birds/train/n0/3.JPEG").unlink()
    else:
        with (tmp_path / "b" / PREPARED / "train.npy").open("r+b") as file:
            file.seek(500)
            file.write(b"\x00\x01\x02\x03\x04")
    forget()
    first, copy = (load("folder", None, 0, tmp_path / x, images) for x in "ab")
    if size == 224:
        assert copy.counts.tolist() == [3, 3, 2]
    else:  # decoded anew
        assert torch.equal(first.train_images, copy.train_images)


@on_any_cores
@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_that_is_decoded_late_is_named(tmp_path, workers):
    path = _truncate(tree(tmp_path / "imagenet"))
    data = load("imagenet", None, 0, tmp_path)
    with pytest.raises(DataError, match=f"^{path}: not an image that can be read"):
        list(data.train_images.batches([[0, 1], [6, 7]], None, workers))


def test_classes_without_images_or_of_one_part_only_are_named(tmp_path):
    folder = tree(tmp_path / "birds")
    (folder / "train/n3").mkdir()
    with pytest.raises(DataError, match="the class n3 has no images"):
        resolve("folder", FOLDER, tmp_path)
    smooth(1).save(folder / "train/n3/1.png")
    with pytest.raises(DataError, match=r"1 are not in all: n3"):
        resolve("folder", FOLDER, tmp_path)


def test_images_of_a_kind_that_is_not_read_are_named(tmp_path):
    for name in ("scan.TIF", "00001.ppm"):
        path = tree(tmp_path / name / "birds") / "train/n1" / name
        smooth(1).save(path)
        with pytest.raises(DataError, match=f"{path}: of a kind that is not read.*.webp"):
            resolve("folder", FOLDER, tmp_path / name)


def test_images_in_a_folder_of_a_class_are_not_left_out_silently(tmp_path):
    inside = tree(tmp_path / "birds") / "train/n1/more"
    inside.mkdir()
    smooth(1).save(inside / "1.png")
    with pytest.raises(DataError, match=f"{inside}: a folder in a class's own"):
        resolve("folder", FOLDER, tmp_path)


def test_two_folders_of_test_images_are_not_chosen_from_silently(tmp_path):
    folder = tree(tmp_path / "birds")
    shutil.copytree(folder / "val", folder / "test")
    with pytest.raises(DataError, match="birds: val/ and test/ are both there"):
        resolve("folder", FOLDER, tmp_path)
    images = listed_for_test(FOLDER, folder, "test")
    assert len(load("folder", None, 0, tmp_path, images).test_labels) == 3


def test_an_image_is_for_training_or_for_testing(tmp_path):
    folder = tree(tmp_path / "birds")
    images = listed_for_test(FOLDER, folder, "val", "train/n1/0.JPEG 1")
    with pytest.raises(DataError, match=r"train/n1/0.JPEG: in the training and the test images"):
        resolve("folder", images, tmp_path)


@pytest.mark.parametrize("name", ["imagenet", "folder"])
def test_lists_choose_the_images(tmp_path, name):
    tree(tmp_path / "set", width=224)
    lines = ["train/n2/1.JPEG 1", "train/n0/3.JPEG 0", "", "train/n0/1.JPEG 0"]
    (tmp_path / "set/train.txt").write_text("\n".join(lines))
    (tmp_path / "set/test.txt").write_text("val/n0/0.JPEG 0\nval/n2/0.JPEG 1\n")
    images = Images(folder="set", size=224 if name == "imagenet" else 64,
                    train_list="train.txt", test_list="test.txt")  # fmt: skip
    data = load(name, None, 0, tmp_path, images)
    assert data.class_names == ["n0", "n2"]
    assert data.train_labels.tolist() == [1, 0, 0]
    side = (256, 224) if name == "imagenet" else (64, 64)
    expected = by_pillow(tmp_path / "set/train/n0/3.JPEG", *side)
    assert (data.train_images[1].numpy() == expected).all()
    whole = resolve(
        name, images.model_copy(update={"train_list": None, "test_list": None}), tmp_path
    )
    assert whole.sha256 != data.sha256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/n1/0.JPEG 0", r"train.txt, line 2: label 0, but n1 is number 1"),
        ("train/n1/9.JPEG 1", r"n1/9.JPEG: not there, but train.txt names it in line 2"),
        ("train/n1/0.JPEG", r"train.txt, line 2: should be a path"),
        ("train/n0/0.JPEG 0", r"train.txt, line 2: train/n0/0.JPEG stands in line 1, too"),
        ("../birds/train/n1/0.JPEG 1", r"line 2: should be a path below"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    folder = tree(tmp_path / "birds")
    (folder / "train.txt").write_text(f"train/n0/0.JPEG 0\n{line}\n")
    images = Images(folder="birds", size=32, train_list="train.txt")
    with pytest.raises(DataError, match=message):
        resolve("folder", images, tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    tree(tmp_path / "birds")
    (tmp_path / "birds.ltkd").write_text("in the way")
    with pytest.raises(DataError, match=f"cannot be written to {tmp_path / PREPARED}"):
        resolve("folder", FOLDER, tmp_path)
    (tmp_path / "birds.ltkd").unlink()
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match="the disk is too full"):
        resolve("folder", FOLDER, tmp_path)
    monkeypatch.undo()
    if os.geteuid():  # nothing is read-only for root
        tmp_path.chmod(0o555)
        with pytest.raises(DataError, match="Permission denied"):
            resolve("folder", FOLDER, tmp_path)
        tmp_path.chmod(0o755)


def test_data_prepare_and_check(tmp_path, capsys):
    given = tmp_path / "birds.yaml"
    text = "dataset: folder\ngammas: [2.0]\nimages: {folder: birds, size: 32}\ndata_root: "
    given.write_text(f"{text}{tmp_path}\n")
    assert cli.main(["data", "prepare", str(given)]) == 2
    assert "is not there" in capsys.readouterr().err
    tree(tmp_path / "birds")
    assert cli.main(["data", "check", str(given)]) == 2
    assert "`ltkd data prepare` does it" in capsys.readouterr().err
    assert cli.main(["data", "prepare", str(given)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("birds: 9 training and 3 test images of 3 classes, sha256 ")
    assert cli.main(["data", "check", str(given)]) == 0
    assert capsys.readouterr().out == said.replace("\n", ": good\n")
    given.write_text(given.read_text().replace("size: 32", f"size: 32, sha256: {'0' * 64}"))
    assert cli.main(["data", "check", str(given)]) == 2
    assert f"images.sha256 = {'0' * 64}, but the images in" in capsys.readouterr().err
    root = ["--data-root", str(tree(tmp_path / "imagenet").parent)]
    assert cli.main(["data", "prepare", "imagenet", *root]) == 0
    bad = _truncate(tmp_path / "imagenet")
    assert cli.main(["data", "check", "imagenet", *root]) == 2
    assert str(bad) in capsys.readouterr().err


# ---- trained on


@pytest.mark.parametrize(
    ("teacher", "student", "method"),
    [
        ("resnet34_imagenet", "resnet18_imagenet", "kd"),
        ("resnet50_imagenet", "mobilenetv1", "reviewkd"),
    ],
)
def test_a_run_on_imagenets_files(tmp_path, teacher, student, method):
    tree(tmp_path / "imagenet", train=(2, 1, 1))  # a step, since these networks are large
    images = resolve("imagenet", None, tmp_path)
    spec = RunSpec(
        dataset="imagenet", images=images, gamma=2.0, teacher=teacher, student=student,
        method=method, teacher_source="live", epochs=1, batch=4, lr=0.01)  # fmt: skip
    record = ltkd.run(spec, outputs=tmp_path / "out", device="cpu", data_root=tmp_path)
    (row,) = record.values["history"]
    assert np.isfinite([row["loss"], row["label_loss"], row["distillation_loss"]]).all()
    assert record.values["data"]["counts"] == [2, 1, 1]
    assert record.predictions().shape == (3,)
    assert (
        json.loads((record.folder / "record.json").read_text())["data"]["sha256"] == images.sha256
    )


def test_ltkd_train_takes_a_folder(tmp_path, capsys):
    tree(tmp_path / "birds")
    spec = tmp_path / "spec.yaml"
    spec.write_text("dataset: folder\nimages: {folder: birds, size: 32}\ngamma: null\n"
                    "student: resnet8\nmethod: student\nepochs: 1\nbatch: 4\n")  # fmt: skip
    call = ["train", str(spec), "--outputs", str(tmp_path / "out"), "--data-root", str(tmp_path)]
    assert cli.main(call) == 0
    record = json.loads(next((tmp_path / "out").rglob("record.json")).read_text())
    assert record["data"]["counts"] == [4, 3, 2]
    assert record["spec"]["images"]["sha256"]
    assert cli.main(call) == 0
    assert capsys.readouterr().out.count("record.json") == 2


def test_runs_are_not_named_without_the_images(tmp_path, capsys):
    """Their hash is part of the names: where they are not seen, no other names are told."""
    tree(tmp_path / "birds")
    given = tmp_path / "birds.yaml"
    text = ("name: birds\ndataset: folder\nimages: {folder: birds, size: 32}\ngammas: [null]\n"
            "pairs: [resnet8-resnet8]\nmethods: [kd, catkd]\nbatch: 4\nseeds: [0]\nablations: []\n"
            "group_counts: [3]\n")  # fmt: skip
    given.write_text(text)
    call = ["status", str(given), "--ids", "--outputs", str(tmp_path / "out"), "--data-root"]
    assert cli.main([*call, str(tmp_path)]) == 0
    ids = capsys.readouterr().out
    assert cli.main([*call, str(tmp_path / "elsewhere")]) == 2
    assert "or give images.sha256: it is part of the runs' names" in capsys.readouterr().err
    assert cli.main(["run", *call[1:2], "--as-is", *call[3:], str(tmp_path / "elsewhere")]) == 2
    assert "or give images.sha256" in capsys.readouterr().err
    for other in ("status", "card"):
        assert cli.main([other, call[1], *call[3:], str(tmp_path / "elsewhere")]) == 2
        assert "or give images.sha256" in capsys.readouterr().err
    sha256 = resolve("folder", Images(folder="birds", size=32), tmp_path).sha256
    given.write_text(text.replace("size: 32", f"size: 32, sha256: {sha256}"))
    assert cli.main([*call, str(tmp_path / "elsewhere")]) == 0
    assert capsys.readouterr().out == ids


def test_other_images_are_another_run(tmp_path, forget):
    spec = RunSpec(dataset="folder", images=Images(folder="birds", size=32), gamma=None,
                   student="resnet8", method="student", epochs=1, batch=4, lr=0.05)  # fmt: skip
    found = []
    for train in ((4, 3, 2), (5, 3, 2)):
        tree(tmp_path / "birds", train)
        forget()
        found.append(ltkd.run(spec, outputs=tmp_path / "out", data_root=tmp_path))
        shutil.rmtree(tmp_path / "birds")
    assert [record.values["data"]["counts"] for record in found] == [[4, 3, 2], [5, 3, 2]]


def test_a_folder_of_another_name_is_looked_at(tmp_path):
    tree(tmp_path / "small", (12, 10, 8))
    images = Images(folder="small", size=32)
    found = longtail.size_of("imagenet", 2.0, root=tmp_path, images=images)
    assert found.counts == load("imagenet", 2.0, root=tmp_path, images=images).counts.tolist()
    assert found.tests == 3
    tree(tmp_path / "large", (12, 10, 8), width=224)
    large = Images(folder="large")
    assert longtail.size_of("imagenet", 2.0, root=tmp_path, images=large).pixels == 224


def test_a_list_of_test_images_is_looked_at(tmp_path):
    images = listed_for_test(Images(size=32), tree(tmp_path / "imagenet", (12, 10, 8)), "val")
    assert longtail.size_of("imagenet", 2.0, root=tmp_path, images=images).tests == 3


def test_two_classes_have_no_head_medium_and_tail(tmp_path):
    tree(tmp_path / "birds", (4, 3))
    images = {"folder": "birds", "size": 32}
    study = Study(name="x", dataset="folder", images=images, gammas=[None], groups=2, batch=4,
                  group_counts=[], data_root=str(tmp_path), outputs=tmp_path / "out")  # fmt: skip
    with pytest.raises(ParameterError, match="2 classes; head, medium and tail need three"):
        study.runs()


def test_the_factor_of_classes_as_they_are_is_exact(tmp_path):
    tree(tmp_path / "birds", (23, 9, 7))
    data = load("folder", None, root=tmp_path, images=Images(folder="birds", size=32))
    assert data.gamma == 23 / 7
    study = Study(name="both", dataset="folder", images={"folder": "birds", "size": 32},
                  gammas=[2.0, None], data_root=str(tmp_path))  # fmt: skip
    assert study.data(23 / 7).gamma == 23 / 7  # as a table states it
    assert study.data(2.0).gamma == 2
    with pytest.raises(ValueError, match=r"gamma = 77.0: not of this study"):
        study.data(77.0)


def test_a_factor_does_not_stand_twice(tmp_path):
    tree(tmp_path / "birds", (8, 6, 4))
    study = Study(name="twice", dataset="folder", images={"folder": "birds", "size": 32}, batch=4,
                  gammas=[2.0, None], data_root=str(tmp_path))  # fmt: skip
    with pytest.raises(ParameterError, match="gammas: null is 2 here, which stands there, too"):
        study.runs()
