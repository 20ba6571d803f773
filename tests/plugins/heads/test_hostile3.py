"""Whatever the files of an EAGLE-3 head hold, it is loaded, or refused in one sentence."""

import copy
import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.errors import EagleError
from eagle.testing import tiny_target
from tests.plugins.heads.published3 import IDS, LLAMA3, authors, speculators, weights
from tests.plugins.heads.test_eagle3 import load

BOUNDED = settings(max_examples=50, deadline=None)
ODD = (
    st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 24, 64, 2**40, 1e300, float("nan"), "x"])
    | st.sampled_from([[], {}, [0, 1, 2], [-1, 5, 9], ["a"], [[]], {"factor": 0}, LLAMA3])
)  # fmt: skip
SAID = {
    "norm_before_residual": False,
    "norm_before_fc": False,
    "fc_norm": False,
    "norm_output": False,
    "feed_back": "before-norm",
    "target_hidden_size": 32,
    "rope_scaling": None,
    "eagle_config": {"use_aux_hidden_state": True},
    **IDS,
}


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def odd_tensor(data, tensor):
    kind = data.draw(st.sampled_from(["none", "cut", "flat", "nan", "int", "half", "bool", "more"]))
    if kind == "none":
        return None
    if kind == "nan" and tensor.is_floating_point():
        return torch.full_like(tensor, torch.nan)
    if kind == "more":
        return tensor.long() * 2**62
    changed = {"cut": tensor[:-1], "flat": tensor.flatten(), "int": tensor.int()}
    return changed.get(kind, tensor.half() if kind == "half" else tensor.bool()).contiguous()


def loads_or_is_refused(target, folder, data):
    tensors = weights(data.draw(st.sampled_from(["none", "joined", "each"])))
    publisher = data.draw(st.sampled_from([authors, speculators]))
    publisher(folder, tensors, **SAID)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(0, 3))):
        places = [config, *(one for one in config.values() if isinstance(one, dict) and one)]
        here = data.draw(st.sampled_from(places))
        key = data.draw(st.sampled_from(sorted(here)))
        if data.draw(st.booleans()):
            here[key] = copy.deepcopy(data.draw(ODD))
        else:
            del here[key]
        if not here:
            break
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        changed = odd_tensor(data, tensors[name])
        tensors = {k: changed if k == name else v for k, v in tensors.items()}
        tensors = {k: v for k, v in tensors.items() if v is not None}
    publisher(folder, tensors)
    path.write_text(json.dumps(config))
    refused = None
    try:
        assert load(target, folder).identity
    except EagleError as error:
        refused = str(error)
    assert refused is None or "\n" not in refused


@BOUNDED
@given(data=st.data())
def test_any_files_are_loaded_or_refused(target, tmp_path_factory, data):
    loads_or_is_refused(target, tmp_path_factory.mktemp("odd"), data)


@pytest.mark.fuzz
@settings(BOUNDED, max_examples=int(os.environ.get("EAGLE_FUZZ", "3000")))
@given(data=st.data())
def test_any_files_are_loaded_or_refused_for_long(target, tmp_path_factory, data):
    loads_or_is_refused(target, tmp_path_factory.mktemp("odd"), data)
