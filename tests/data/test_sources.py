"""Absent and damaged data: the message names the folder and the mend, and nothing is unpickled."""

import pickle

import pytest

from ltkd.data import DataError
from ltkd.data.sources import cifar, prepare, source


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle with a wrong md5 was loaded",))


def test_missing_data_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(DataError) as error:
        source("cifar100", tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "ltkd data prepare cifar100" in str(error.value)


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_a_foreign_pickle_is_refused_before_it_is_loaded(tmp_path, name):
    from ltkd.data.sources import _CIFAR

    folder = tmp_path / _CIFAR[name].folder
    folder.mkdir()
    for file in _CIFAR[name].files:
        (folder / file).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DataError, match="is not the official file"):
        cifar(name, tmp_path)


def test_prepare_says_what_is_there(cifar100):
    assert "50000 training and 10000 test images" in prepare("cifar100")


def test_prepare_digits_needs_nothing():
    assert prepare("digits").startswith("Digits: 1201 training and 596 test images")


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import torchvision.datasets

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(DataError, match=r"no network.*by hand: train, test, meta"):
        prepare("cifar100", tmp_path)
