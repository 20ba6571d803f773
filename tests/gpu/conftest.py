"""The tiny pair on a CUDA device; everything in this folder is skipped without one."""

import copy
import logging

import pytest
import torch

from eagle.decoding.decoder import Decoder
from eagle.target.causal_lm import Target


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(scope="session")
def cuda_target(pair):
    """The tiny target in float32 on the device."""
    return Target(copy.deepcopy(pair[0].model).to("cuda"), None, "tiny-cuda")


@pytest.fixture
def make(cuda_target, spec, caplog):
    """Build a decoder of the tiny pair in a mode; a fallback to another one fails the test."""
    caplog.set_level(logging.WARNING, logger="eagle.runtime")

    def build(mode, max_batch=8, **changes):
        runtime = {"max_batch": max_batch} | {
            "eager": {"cuda_graph": False, "compile": False},
            "graph": {"cuda_graph": True, "compile": False},
            "compiled": {"cuda_graph": True, "compile": True},
        }[mode]
        return Decoder.from_spec(spec(runtime=runtime, **changes), target=cuda_target)

    yield build
    assert not [r for r in caplog.records if r.name == "eagle.runtime"]
