"""Shared pieces of the tests: tiny specs, and where CIFAR-100 is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from ltkd.data import DataError
from ltkd.data.sources import source
from ltkd.params import RunSpec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tiny():
    """A factory of specs that train in a second: Digits-LT, two epochs, the smallest network."""

    def make(**changes):
        base = {"dataset": "digits", "gamma": 20.0, "student": "resnet8", "method": "student",
                "epochs": 2, "batch": 32, "lr": 0.05, "schedule": "one_cycle"}  # fmt: skip
        return RunSpec(**(base | changes))

    return make


@pytest.fixture(scope="session")
def cifar100():
    """The official CIFAR-100; the test is skipped, with the reason, where it is not there."""
    try:
        return source("cifar100")
    except DataError as error:
        pytest.skip(str(error))
