"""A checkpoint that is not what this run left is refused in a sentence, and stays as it is."""

import copy
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle.errors import CheckpointError, DataError
from eagle.testing import tiny_head
from eagle.train.run.parts import problem_with
from eagle.train.run.run import train
from eagle.train.run.state import RunState
from eagle.train.spec.recipe import load_train_spec
from tests.train.test_run import BASE

PARTS = ["step", "seconds", "best", "identity", "text", "head", "optimizer", "average"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, target, make_corpus):
    """A run of two steps with a moving average, its spec, and the parts of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    make_corpus().save(folder / "text.npz")
    (folder / "run.yaml").write_text(BASE)
    overrides = ["evaluation.every=null", "evaluation.heldout=0", "optimizer.ema=0.9"]
    spec = load_train_spec(folder / "run.yaml", [*overrides, "steps=2", f"output={folder / 'out'}"])
    train(spec, target=target)
    path = folder / "out" / "checkpoint.pt"
    return spec, path, torch.load(path, weights_only=True)


@pytest.fixture
def resume(made, target):
    """Resume with changed parts; return the sentence, and make sure that no file changed."""
    spec, path, parts = made
    whole, log = path.read_bytes(), path.with_name("log.jsonl").read_bytes()

    def call(change):
        changed = copy.deepcopy(parts)
        change(changed)
        torch.save(changed, path)
        before = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()}
        with pytest.raises(CheckpointError) as raised:
            train(spec, target=target, resume=True)
        assert {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before
        assert "\n" not in str(raised.value)
        return str(raised.value)

    yield call
    path.write_bytes(whole)
    path.with_name("log.jsonl").write_bytes(log)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_missing_is_named(resume, name):
    assert f"it has no part {name!r}" in resume(lambda parts: parts.pop(name))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("value", [None, 1.5, -1, "x", [1], {"a": 1}, {}, float("nan"), True])
def test_a_part_of_another_type_is_named(made, name, value):
    allowed = {"seconds": (1.5,), "best": (1.5, -1), "text": ("x",), "identity": ({"a": 1}, {})}
    if any(value is one or value == one for one in allowed.get(name, ())):
        return
    assert name in str(problem_with(made[2] | {name: value}))


def first(parts):
    return next(iter(parts["optimizer"]["state"].values()))


def fc(parts):
    return parts["head"]["fc.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(other=1), "unknown part 'other'"),
        (lambda p: p["head"].update({"fc.weight": fc(p).to("meta")}), "'head' is not finite"),
        (lambda p: p["head"].update({"fc.weight": fc(p) / 0}), "'head' is not finite"),
        (lambda p: p["head"].pop("fc.weight"), "'head' is not of the head"),
        (lambda p: p["head"].update({"fc.weight": fc(p)[:1]}), "'head' is not of the head"),
        (lambda p: p["optimizer"].pop("state"), "'optimizer' is not the state of AdamW"),
        (lambda p: p["optimizer"].update(state={}), "'optimizer' is not of the head"),
        (lambda p: p["optimizer"].update(param_groups=[]), "'optimizer' is not of the head"),
        (lambda p: p["optimizer"]["param_groups"][0].update(params="x"), "the state of AdamW"),
        (lambda p: first(p).pop("exp_avg"), "the state of AdamW"),
        (lambda p: first(p).update(exp_avg=3), "the state of AdamW"),
        (lambda p: first(p).update(step=torch.ones(2)), "the state of AdamW"),
        (lambda p: first(p).update(exp_avg=torch.ones(3)), "'optimizer' is not of the head"),
        (lambda p: p["average"].pop(), "'average' is not of the head"),
        (lambda p: p["average"].reverse(), "'average' is not of the head"),
        (lambda p: p["average"].append("x"), "'average' is not a list of tensors"),
    ],
)
def test_a_part_that_is_wrong_inside_is_named(resume, change, message):
    assert message in resume(change)


@pytest.mark.parametrize("content", [[1], 3, None, torch.ones(2)])
def test_something_else_is_refused(content):
    assert "not its parts by name" in problem_with(content)


def test_the_optimizers_settings_are_those_of_the_spec(made, target):
    spec, path, parts = made
    changed = copy.deepcopy(parts)
    changed["optimizer"]["param_groups"][0].update(betas="x", lr=None, weight_decay=7.0)
    torch.save(changed, path)
    assert train(spec, target=target, resume=True).finished
    kept = RunState.load(path).optimizer["param_groups"][0]
    assert (kept["betas"], kept["weight_decay"]) == (spec.optimizer.betas, 0.0)


@pytest.mark.parametrize("content", [bytes(range(256)), b"{}\n{}\n", b'{"kind": 1, "step": 2}\n'])
def test_a_log_that_is_none_is_refused_before_anything_is_done(made, target, content):
    spec, path, parts = made
    torch.save(parts, path)
    log = path.with_name("log.jsonl")
    kept = log.read_bytes()
    log.write_bytes(content + b"\n")
    before = {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()}
    with pytest.raises(DataError, match=r"log\.jsonl:1: not a line of a run's log"):
        train(spec, target=target, resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in path.parent.iterdir()} == before
    log.write_bytes(kept)


@pytest.mark.parametrize("content", [b"\xff\x00", b"[1]", b"[" * 10**5, b'{"a": 1}'])
def test_answers_that_cannot_be_made_out_are_made_anew(tmp_path, target, make_corpus, content):
    make_corpus().save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)
    spec = load_train_spec(tmp_path / "run.yaml", ["steps=1", f"output={tmp_path / 'out'}"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.json").write_bytes(content)
    assert train(spec, target=target).measured.score >= 1


def test_what_a_run_leaves_fits(made):
    assert problem_with(made[2]) is None


ODD = st.recursive(
    st.sampled_from([torch.ones(3), torch.ones(2).bool(), torch.ones(1, device="meta"), None, True])
    | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)  # fmt: skip


def places(value, path=()):
    """Return the paths of all values inside of nested mappings and lists."""
    found = []
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((*path, key))
        found += places(one, (*path, key)) if isinstance(one, dict | list) else []
    return found


def fits_or_is_refused(made, target, data):
    """Whatever stands at any place of a checkpoint, it is taken up or refused."""
    changed = copy.deepcopy(made[2])
    for _ in range(data.draw(st.integers(1, 3))):
        here = changed
        path = data.draw(st.sampled_from(places(changed)))
        for key in path[:-1]:
            here = here[key]
        if data.draw(st.booleans()):
            here[path[-1]] = data.draw(ODD)
        else:
            del here[path[-1]]
    if problem_with(changed) is None:
        head = tiny_head(target).module
        numbered = [*head.parameters()]
        try:
            RunState(**changed).check_fit(head.state_dict(), numbered, numbered)
        except CheckpointError:
            return
        optimizer = torch.optim.AdamW(numbered)
        own = optimizer.state_dict()
        optimizer.load_state_dict({**own, "state": changed["optimizer"]["state"]})
        head.load_state_dict(changed["head"])


BOUNDED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BOUNDED
@given(data=st.data())
def test_any_checkpoint_fits_or_is_refused(made, target, data):
    fits_or_is_refused(made, target, data)


@pytest.mark.fuzz
@settings(BOUNDED, max_examples=int(os.environ.get("EAGLE_FUZZ", "3000")))
@given(data=st.data())
def test_any_checkpoint_fits_or_is_refused_for_long(made, target, data):
    fits_or_is_refused(made, target, data)
