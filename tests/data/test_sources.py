"""Absent and damaged data: the message names the folder and the mend."""

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest

from ltkd.data import DataError, fingerprint, load, size_of
from ltkd.data.sources import prepare, source


def test_missing_data_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(DataError) as error:
        source("cifar100", tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "ltkd data prepare cifar100" in str(error.value)


@pytest.mark.parametrize("name", ["cifar1000", "tiny_imagenet"])
@pytest.mark.parametrize("function", [source, prepare])
def test_an_unknown_set_is_named(tmp_path, function, name):
    with pytest.raises(DataError, match=f"dataset = '{name}': unknown; should be digits, cifar100"):
        function(name, tmp_path)


def test_cifar10_is_five_batches_in_their_order(tmp_path, monkeypatch):
    """The official layout at a hundredth of its size, under sums of its own."""
    from ltkd.data import sources

    about = sources._CIFAR["cifar10"]
    folder, sums = tmp_path / about.folder, {}
    folder.mkdir()
    order = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for number, file in enumerate(order):
        data = np.full((100, 3072), number, np.uint8)
        data[:, 1024:2048] += 100  # a plane a colour
        labels = [(number + i) % 10 for i in range(100)]
        content = pickle.dumps({"data": data, "labels": labels}, protocol=2)
        (folder / file).write_bytes(content)
        sums[file] = hashlib.md5(content).hexdigest()
    content = pickle.dumps({"label_names": list("abcdefghij")}, protocol=2)
    (folder / about.names[0]).write_bytes(content)
    sums[about.names[0]] = hashlib.md5(content).hexdigest()
    assert set(sums) == set(about.files)
    monkeypatch.setitem(sources._CIFAR, "cifar10", replace(about, files=sums))
    found = sources.cifar.__wrapped__("cifar10", tmp_path)
    images, labels = found.train
    assert images.shape == (500, 3, 32, 32)
    assert images[::100, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert images[::100, 1, 31, 31].tolist() == [100, 101, 102, 103, 104]
    assert labels[:3].tolist() == [0, 1, 2]
    assert labels[400:403].tolist() == [4, 5, 6]
    assert found.test[0][0, 0, 0, 0] == 5
    assert found.class_names == list("abcdefghij")
    # The set's own mean and deviation, and a crop of a padding of 4, with a flip.
    assert (found.mean, found.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (found.views.shift, found.views.count) == (4, 9 * 9 * 2)
    batch = folder / "data_batch_4"
    batch.write_bytes(batch.read_bytes().replace(b"\x03" * 9, b"\x04" * 9, 1))
    with pytest.raises(DataError, match=r"data_batch_4 is not the official file \(md5 differs\)"):
        sources.cifar.__wrapped__("cifar10", tmp_path)


def test_prepare_says_what_is_there(cifar100):
    assert "50000 training and 10000 test images" in prepare("cifar100")


def test_prepare_digits_needs_nothing():
    assert prepare("digits").startswith("Digits: 1201 training and 596 test images")


@pytest.mark.parametrize(
    ("call", "message"),
    [(lambda: load("tiny_imagnet", 100.0), "'tiny_imagnet': unknown. Did you mean 'tiny_imagenet'"),
     (lambda: load("digits", 1.0, holdout=-1), "holdout = -1: images a class"),
     (lambda: size_of("cifar100", 100.0, holdout=-5), "holdout = -5: images a class"),
     (lambda: fingerprint("x"), "'x': unknown")],
)  # fmt: skip
def test_what_is_no_data_set_is_named(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(DataError, match=r"no network.*by hand: train, test, meta"):
        prepare("cifar100", tmp_path)
