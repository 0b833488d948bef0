"""Shared pieces of the tests: no GPU, tiny specs, and where CIFAR-100 is."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from ltkd.data import DataError
from ltkd.data.sources import source
from ltkd.params import RunSpec

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def no_gpu(request):
    """A GPU is there for test_gpu.py alone: what the others expect are a processor's numbers.

    Of a module, because its fixtures train too. The variable is for the processes that a test
    starts; in this one test_gpu.py has asked CUDA already, which reads it once.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_gpu":
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


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


@pytest.fixture(scope="module")
def forked():
    """Workers are copies of this process, with what is patched in it: they need not load torch."""
    import torch._dynamo  # noqa: F401  # which the first optimiser of a process takes seconds to load

    from ltkd import pool

    plain = pool.get_context
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "get_context", lambda _: plain("fork"))
        yield
