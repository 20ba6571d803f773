import json
from pathlib import Path

import pytest
import torch

from eagle.errors import CheckpointError, DataError, NumericalError, SpecError
from eagle.testing import tiny_target
from eagle.train.run import run as module
from eagle.train.run.run import train
from eagle.train.run.state import RunState
from eagle.train.spec.recipe import load_train_spec

BASE = """
data: {packed: text.npz, length: 32, heldout: 0.1}
batch: 2
steps: 12
log_every: 1
save_every: 4
tensorboard: false
optimizer: {lr: 3.0e-3}
evaluation:
  every: 6
  heldout: 3
  max_new_tokens: 8
  trees: [{name: chain, depth: 3}, {name: static, tree: reference-25}]
  chain: 3
"""


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(*overrides, output="out"):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


def log(outcome):
    lines = (outcome.head.parent / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(outcome):
    return {line["step"]: line["loss"] for line in log(outcome) if line["kind"] == "train"}


def test_a_head_overfits_one_batch(tmp_path, make_corpus):
    target = tiny_target("llama-gqa")
    make_corpus(1).save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)
    overrides = ["data.length=12", "data.heldout=0", "batch=1", "steps=400", "save_every=400"]
    overrides += ["noise.uniform=0", "evaluation.every=null", "evaluation.heldout=0"]
    overrides += [f"output={tmp_path / 'out'}", "log_every=50", "optimizer.lr=5.0e-3"]
    outcome = train(load_train_spec(tmp_path / "run.yaml", overrides), target=target)
    first, last = (next(iter(losses(outcome).values())), log(outcome)[-2])
    assert last["feature"] < 0.01 < first
    assert last["accuracy"] == 1.0


def test_leaves_a_run_folder_with_what_it_promises(spec, target):
    outcome = train(spec(), target=target)
    assert outcome.finished
    names = {path.name for path in outcome.head.parent.iterdir()}
    wanted = {"config.yaml", "log.jsonl", "checkpoint.pt", "head", "best", "answers.json"}
    assert names == wanted
    figures = [line for line in log(outcome) if line["kind"] == "evaluation"]
    assert [line["step"] for line in figures] == [6, 12]
    assert set(figures[-1]["tau"]) == {"chain 3", "static reference-25"}
    assert 1 <= figures[-1]["tau"]["chain 3"]["held-out"] <= 4
    again = load_train_spec(outcome.head.parent / "config.yaml")
    assert again.identity() == spec().identity()


def test_a_trained_head_is_loaded_by_name(spec, target):
    outcome = train(spec(), target=target)
    continued = train(
        spec("start=checkpoint", f"head.weights={outcome.head}", output="second"), target=target
    )
    assert losses(continued)[1] < losses(outcome)[1]


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_run_that_is_killed_and_resumed_has_the_losses_of_one_that_is_not(
    spec, target, monkeypatch, stop
):
    whole = losses(train(spec(output="whole"), target=target))

    step = module.Trainer._step

    def killed(self, batch):
        if self.step == stop:
            raise SystemError("killed")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_step", killed)
        with pytest.raises(SystemError):
            train(spec(), target=target)
    assert losses(train(spec(), target=target, resume=True)) == whole


def test_a_run_out_of_time_ends_with_a_head_and_goes_on(spec, target):
    first = train(spec("max_seconds=0.001"), target=target)
    assert not first.finished
    assert (first.head / "model.safetensors").exists()
    second = train(spec(), target=target, resume=True)
    assert second.finished
    assert losses(second) == losses(train(spec(output="whole"), target=target))


def test_a_run_ends_with_its_clock_and_so_does_the_learning_rate(spec, target, monkeypatch):
    step = module.Trainer._step

    def slow(self, batch):
        self.seconds += 0.25
        return step(self, batch)

    monkeypatch.setattr(module.Trainer, "_step", slow)
    changes = ["optimizer.seconds=1", "optimizer.final=0", "optimizer.schedule=linear", "steps=99"]
    outcome = train(spec(*changes, "optimizer.warmup=0", "optimizer.lr=1.0"), target=target)
    assert outcome.finished
    assert outcome.step <= 4
    rates = [line["lr"] for line in log(outcome) if line["kind"] == "train"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.3


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_intact(spec, target, monkeypatch):
    step = module.Trainer._step

    def poisoned(self, batch):
        if self.step == 6:
            next(self.head.module.parameters()).data.fill_(float("nan"))
        return step(self, batch)

    monkeypatch.setattr(module.Trainer, "_step", poisoned)
    with pytest.raises(NumericalError, match=r"became nan between steps 6 and 7"):
        train(spec("evaluation.every=null"), target=target)
    state = RunState.load(_checkpoint(spec()))
    assert state.step == 4
    assert all(torch.isfinite(tensor).all() for tensor in state.head.values())


def _checkpoint(spec):
    return Path(spec.output) / "checkpoint.pt"


def test_a_full_disk_leaves_the_last_checkpoint(spec, target, monkeypatch):
    train(spec("steps=4", "optimizer.schedule=constant", "optimizer.warmup=0"), target=target)
    before = _checkpoint(spec()).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="one before it is untouched"):
        train(spec(), target=target, resume=True)
    assert _checkpoint(spec()).read_bytes() == before
    assert not list(_checkpoint(spec()).parent.glob(".*"))


def test_does_not_overwrite_a_run(spec, target):
    train(spec("steps=4"), target=target)
    with pytest.raises(SpecError, match="holds a run already; go on with it with --resume"):
        train(spec(), target=target)


@pytest.mark.parametrize("left", ["head", "best"])
def test_does_not_overwrite_the_heads_of_a_run_whose_checkpoint_is_gone(spec, target, left):
    train(spec("steps=4"), target=target)
    folder = _checkpoint(spec()).parent
    for name in {"checkpoint.pt", "head", "best"} - {left}:
        (folder / name).rename(folder / f"{name}.gone")
    with pytest.raises(SpecError, match="holds a run already"):
        train(spec(), target=target)


def test_the_best_head_of_an_earlier_run_is_not_this_ones(spec, target):
    train(spec("steps=4"), target=target)
    _checkpoint(spec()).unlink()
    unmeasured = ("steps=4", "evaluation.heldout=0", "evaluation.prompts={}")
    outcome = train(spec(*unmeasured), target=target, resume=True)
    assert outcome.best == outcome.head


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("text", ["# mine\nsteps: 4\n", "steps: 4\n", "[1", "hello: &x [*x]"])
def test_a_config_that_no_run_wrote_is_not_replaced(spec, target, resume, text):
    folder = _checkpoint(spec()).parent
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"config\.yaml is there and was not written by a run"):
        train(spec("steps=4"), target=target, resume=resume)
    assert (folder / "config.yaml").read_text() == text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("batch=3", r"batch \(2 rows a step, .* and here 3\)"),
        ("noise.uniform=0.2", "noise.uniform"),
    ],
)
def test_does_not_go_on_with_another_run(spec, target, change, named):
    train(spec("steps=4"), target=target)
    with pytest.raises(SpecError, match=f"a run with another {named}"):
        train(spec(change), target=target, resume=True)


def test_does_not_go_on_with_other_text(spec, target, make_corpus, tmp_path):
    train(spec("steps=4"), target=target)
    make_corpus(seed=1).save(tmp_path / "text.npz")
    with pytest.raises(SpecError, match="with another training text"):
        train(spec(), target=target, resume=True)


def test_a_damaged_checkpoint_is_refused(spec, target):
    train(spec("steps=4"), target=target)
    _checkpoint(spec()).write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        train(spec(), target=target, resume=True)


def test_a_head_that_cannot_be_trained_is_refused(spec, target):
    with pytest.raises(SpecError, match="'none' cannot be trained: it has no initialise"):
        train(spec("head=none", 'evaluation.trees=[{"name": "none"}]'), target=target)


def test_rows_longer_than_the_target_takes_are_refused(spec, target):
    with pytest.raises(SpecError, match=r"data\.length: 4096 is more than the 512 tokens"):
        train(spec("data.length=4096"), target=target)


def test_text_of_another_vocabulary_is_refused(spec, target, make_corpus, tmp_path):
    make_corpus(vocab=100).save(tmp_path / "text.npz")
    with pytest.raises(DataError, match="with another tokenizer"):
        train(spec(), target=target)


def test_refuses_before_anything_is_written(spec, target, tmp_path):
    with pytest.raises(SpecError):
        train(spec("evaluation.trees=[statc]"), target=target)
    assert not (tmp_path / "out").exists()
