"""Options of a recipe, each in a whole run: levels, averaged weights, where a run starts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from eagle.testing import tiny_head, tiny_target
from eagle.train.objective.average import Average
from eagle.train.run import run as module
from eagle.train.run.run import train
from eagle.train.run.state import RunState
from eagle.train.spec.recipe import load_train_spec

BASE = """
data: {packed: text.npz, length: 32, heldout: 0.1}
batch: 2
steps: 8
log_every: 1
save_every: 4
optimizer: {lr: 3.0e-3}
evaluation: {every: 4, heldout: 3, max_new_tokens: 8, trees: [{name: chain, depth: 3}], chain: 3}
"""


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(*overrides, output="out"):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


def log(outcome, kind="train"):
    lines = (outcome.head.parent / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def killed_at(monkeypatch, stop, spec, target):
    """Run until a step, and go on from the last checkpoint."""
    step = module.Trainer._step

    def killed(self, *args):
        if self.step == stop:
            raise SystemError("killed")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_step", killed)
        with pytest.raises(SystemError):
            train(spec, target=target)
    return train(spec, target=target, resume=True)


def test_levels_are_logged_and_resumed(spec, target, monkeypatch):
    whole = train(spec("loss.levels=3", output="whole"), target=target)
    assert all(len(line["accuracy_by_level"]) == 3 for line in log(whole))
    assert all(line["accuracy_by_level"][0] == line["accuracy"] for line in log(whole))
    again = killed_at(monkeypatch, 5, spec("loss.levels=3"), target)
    assert [line["loss"] for line in log(again)] == [line["loss"] for line in log(whole)]


def test_the_first_level_of_several_starts_as_the_only_one_does(spec, target):
    one = train(spec("steps=1", output="one"), target=target)
    three = train(spec("steps=1", "loss.levels=3", output="three"), target=target)
    for name in ("feature", "token", "accuracy"):
        assert log(three)[0][name] == pytest.approx(log(one)[0][name], rel=1e-5)
    assert log(three)[0]["loss"] != log(one)[0]["loss"]


def test_deeper_levels_learn_more_where_they_are_trained(spec, target, make_corpus, tmp_path):
    make_corpus(4).save(tmp_path / "text.npz")
    longer = ["steps=150", "log_every=150", "evaluation.every=null", "data.heldout=0"]
    longer += ["evaluation.heldout=0", "noise.uniform=0", "save_every=150"]
    first = train(spec(*longer, output="first"), target=target)
    probe = [*longer, "start=checkpoint", f"head.weights={first.head}", "optimizer.lr=1.0e-12"]
    probe += ["loss.levels=3", "steps=1"]
    three = train(spec(*longer, "loss.levels=3", output="three"), target=target)
    trained = log(train(spec(*probe, f"head.weights={three.head}", output="b"), target=target))[0]
    plain = log(train(spec(*probe, output="a"), target=target))[0]
    assert trained["accuracy_by_level"][2] > plain["accuracy_by_level"][2]


def test_averaged_weights_are_saved_and_resumed(spec, target, monkeypatch):
    whole = train(spec("optimizer.ema=0.9", output="whole"), target=target)
    plain = train(spec(output="plain"), target=target)
    assert [line["loss"] for line in log(whole)] == [line["loss"] for line in log(plain)]
    ours, theirs = (load_file(run.head / "model.safetensors") for run in (whole, plain))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    state = RunState.load(whole.head.parent / "checkpoint.pt")
    for value, (name, trained) in zip(state.average, state.head.items(), strict=True):
        torch.testing.assert_close(ours[name], value.bfloat16())
        assert torch.equal(theirs[name], trained.bfloat16())
    again = killed_at(monkeypatch, 6, spec("optimizer.ema=0.9"), target)
    found = load_file(again.head / "model.safetensors")
    assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_an_average_forgets_the_start_first():
    weight = torch.zeros(2)
    average = Average([weight], 0.5)
    for step, value in enumerate((1.0, 3.0)):
        weight.fill_(value)
        average.update(step)
    assert average.values[0].tolist() == pytest.approx([0.9 + (3 - 0.9) * (1 - 2 / 11)] * 2)
    with average.applied():
        assert weight.tolist() == pytest.approx(average.values[0].tolist())
    assert weight.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_from_a_checkpoint_trains_its_weights(spec, tmp_path, dtype):
    target = tiny_target(dtype=dtype)
    tiny_head(target).save(tmp_path / "head")
    start = ["start=checkpoint", f"head.weights={tmp_path / 'head'}", "evaluation.heldout=0"]
    outcome = train(spec(*start, "optimizer.lr=1.0e-2"), target=target)
    losses = [line["loss"] for line in log(outcome)]
    assert losses[-1] < 0.9 * losses[0]
    before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "head", outcome.head)
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_only_the_last_evaluation_uses_all_prompts(spec, target, tmp_path, monkeypatch):
    prompts = {"held-out": [[4, 5, 6]], "other": [[7, 8]]}
    monkeypatch.setattr(
        "eagle.train.evaluation.measure.heldout_prompts", lambda *_: prompts["held-out"]
    )
    monkeypatch.setattr("eagle.train.evaluation.measure.file_prompts", lambda *_: prompts["other"])
    outcome = train(spec('evaluation.prompts={"other": "x.jsonl"}'), target=target)
    measured = [list(line["n_alpha"]) for line in log(outcome, "evaluation")]
    assert measured == [["held-out"], ["held-out", "other"]]
