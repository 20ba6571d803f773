"""Specs whose cycles cannot be captured: on a GPU one sentence names the part and another one."""

import logging

import pytest
import torch

from eagle.decoding.decoder import Decoder
from eagle.decoding.trace import Trace
from eagle.errors import IncompatibleError
from eagle.plugin import ROLES
from eagle.runtime import check_capturable
from eagle.spec import DecoderSpec, load_spec, resolve
from tests import fakes
from tests.fakes import strategy

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIDENT = {"name": "best-first", "nodes": 6, "depth": 2, "least": 0.1}


def made(*roles, cuda_graph="auto", name=None):
    """Return a spec whose parts in some roles read the device on the host."""
    names = {role: name or f"reading-{role}" for role in roles}
    registry = fakes.registry(
        **{role: [strategy(named, capturable=False)] for role, named in names.items()}
    )
    return resolve(DecoderSpec(runtime={"cuda_graph": cuda_graph}, **names), registry)


@pytest.fixture
def said(caplog):
    """What the runtime warned of so far."""
    caplog.set_level(logging.WARNING, logger="eagle.runtime")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "eagle.runtime"]


@pytest.mark.parametrize("role", [role.value for role in ROLES])
def test_the_part_is_named_and_one_that_would_do(role, said):
    check_capturable(made(role), CUDA)
    (message,) = said()
    assert "\n" not in message
    assert f"{role} 'reading-{role}', as set here, reads the device on the host" in message
    other = DecoderSpec().component(next(one for one in ROLES if one.value == role)).name
    assert f"with {role} '{other}', say, whole cycles would be" in message
    assert "runtime.cuda_graph=false" in message


def test_several_parts_are_one_sentence(said):
    check_capturable(made("head", "tree"), CUDA)
    (message,) = said()
    assert "head 'reading-head' and tree 'reading-tree', as set here, read the device" in message
    assert "with head 'eagle' and tree 'static', say, whole cycles would be" in message


def test_a_part_is_not_offered_in_its_own_place(said):
    check_capturable(made("tree", name="static"), CUDA)
    check_capturable(made("tree", "head", name="static"), CUDA)
    for message in said():
        assert "without that whole cycles would be" in message
    assert len(said()) == 2


@pytest.mark.parametrize(
    ("resolved", "device", "speaks"),
    [
        pytest.param(lambda: made("tree"), CPU, True, id="nothing-is-captured-on-a-cpu"),
        pytest.param(lambda: made("tree", cuda_graph=False), CUDA, True, id="it-is-meant"),
        pytest.param(made, CUDA, True, id="it-is-captured"),
        pytest.param(lambda: made("tree"), CUDA, False, id="another-process-says-it"),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(resolved, device, speaks, said):
    check_capturable(resolved(), device, speaks=speaks)
    assert said() == []


def test_graphs_that_are_asked_for_are_refused_by_the_part():
    with pytest.raises(IncompatibleError, match=r"runtime\.cuda_graph: tree 'reading-tree', as"):
        check_capturable(made("tree", cuda_graph=True), CUDA)
    with pytest.raises(IncompatibleError, match=r"runtime\.cuda_graph: CUDA graphs need a CUDA"):
        check_capturable(made(cuda_graph=True), CPU)


class StoppedError(Exception):
    """Raised where a GPU would be needed."""


@pytest.fixture
def on_cuda(pair, monkeypatch):
    """A target that says that it is on a GPU, for as long as nobody runs it."""

    def stop(attention):
        raise StoppedError

    monkeypatch.setattr(pair[0], "device", CUDA)
    monkeypatch.setattr(pair[0], "probe", stop)
    return pair[0]


def test_a_decoder_says_so_once_before_it_takes_its_time(on_cuda, spec, said):
    with pytest.raises(StoppedError):
        Decoder.from_spec(spec(tree=CONFIDENT, attention="sdpa"), target=on_cuda)
    (message,) = said()
    assert message.startswith("cycles run eagerly, which is much slower on a GPU: tree 'best-firs")


def test_a_decoder_that_is_watched_says_nothing(on_cuda, spec, said):
    with pytest.raises(StoppedError):
        Trace().decoder(spec(attention="sdpa"), target=on_cuda)
    assert said() == []


def test_a_decoder_on_a_cpu_says_nothing(pair, spec, said):
    Decoder.from_spec(spec(tree=CONFIDENT), target=pair[0]).generate([3, 4, 5], max_new_tokens=8)
    assert said() == []


def test_of_the_shipped_specs_the_one_for_cpus_alone_is_not_captured():
    from eagle.plugin import default_registry
    from eagle.spec import shipped_specs

    found = {
        name: [role.value for role in resolve(load_spec(name), default_registry()).on_host]
        for name in shipped_specs()
    }
    assert {name: roles for name, roles in found.items() if roles} == {"eagle-confident": ["tree"]}
