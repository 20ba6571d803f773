"""Shared fixtures, and the Hypothesis profiles: the same examples each time, or many new ones."""

import os

# On tensors as small as these, threads wait for each other longer than they work. OpenMP reads this
# when torch is imported, and whatever a test starts inherits it: with two test processes on two
# cores, a command that had two threads of its own was five times slower than alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Without a GPU, Triton's kernels are interpreted; that is settled when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from eagle.spec import DecoderSpec
from eagle.testing import tiny_pair

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def pair():
    """A tiny trained target, and the folder of its head."""
    return tiny_pair()


@pytest.fixture(scope="session")
def spec(pair):
    """A spec for the pair's head; keyword arguments replace what differs."""

    def make(**changes):
        parts = {
            "head": {"name": "eagle", "weights": str(pair[1])},
            "tree": {"name": "static", "branching": [3, 2, 1]},
        }
        return DecoderSpec(**(parts | changes))

    return make
