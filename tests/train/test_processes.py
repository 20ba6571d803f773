"""Several processes, or several batches a step, against one process with the same rows a step."""

import pytest
import torch

from eagle.errors import SpecError
from eagle.spec.schema import TargetSpec
from eagle.train.run.processes import Processes
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec
from tests.train.together import BASE, figures, run_two, weights


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(output, *overrides):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


def test_two_processes_train_as_one_with_their_rows(spec, target):
    train(spec("one"), target=target)
    run_two(spec("two", "batch=2"))
    torch.testing.assert_close(figures(spec("two"))[0], figures(spec("one"))[0])
    assert figures(spec("two"))[1] == figures(spec("one"))[1]
    torch.testing.assert_close(weights(spec("two")), weights(spec("one")), atol=1e-4, rtol=0)


def test_a_run_of_two_processes_is_resumed_by_two_and_by_one(spec, target):
    train(spec("one"), target=target)
    for output in ("two", "other"):
        run_two(spec(output, "batch=2", "steps=3"))
    run_two(spec("two", "batch=2"), resume=True)
    train(spec("other"), target=target, resume=True)
    for output in ("two", "other"):
        torch.testing.assert_close(figures(spec(output))[0], figures(spec("one"))[0])


@pytest.mark.parametrize("parts", [2, 4])
def test_batches_of_a_step_add_up(spec, target, parts):
    train(spec("one"), target=target)
    train(spec("parts", f"batch={4 // parts}", f"accumulate={parts}"), target=target)
    torch.testing.assert_close(figures(spec("parts"))[0], figures(spec("one"))[0])
    torch.testing.assert_close(weights(spec("parts")), weights(spec("one")), atol=1e-4, rtol=0)


def test_one_device_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SpecError, match="cuda:1 would be the device of every process"):
        Processes.join(TargetSpec(device="cuda:1"))


def test_a_process_that_was_started_alone_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join(TargetSpec(device="cpu")) == Processes(1, 0)


def test_all_devices_for_each_process_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match=r"target\.device_map: .* there are 2 processes"):
        Processes.join(TargetSpec(device_map="auto"))


def test_processes_share_rows_unless_the_target_is_cut_over_them():
    own = [Processes(4, rank) for rank in range(4)]
    assert [(one.shares, one.share, one.measures) for one in own] == [
        (4, 0, True),
        (4, 1, False),
        (4, 2, False),
        (4, 3, False),
    ]
    same = [Processes(4, rank, copies=4) for rank in range(4)]
    assert {(one.shares, one.share, one.measures) for one in same} == {(1, 0, True)}
