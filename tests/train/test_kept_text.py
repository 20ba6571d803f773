"""A run has the text of its config: what an earlier process kept is looked at first."""

import pytest

from eagle.errors import SpecError
from eagle.train.data.corpus import Corpus
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec
from tests.train.words import write_project, write_talks

CONFIG = """
target: {model: target, dtype: float32, device: cpu}
data: {sources: [{path: talk.jsonl}], length: 32, heldout: 0.1}
batch: 2
steps: 2
tensorboard: false
evaluation: {every: null, heldout: 0}
"""


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path)
    write_talks(tmp_path / "other.jsonl", 90)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def run(project):
    def call(*overrides, resume=False):
        config = [f"output={project / 'out'}", *overrides]
        return train(load_train_spec(project / "run.yaml", config), resume=resume)

    return call


def tokens(project):
    return len(Corpus.load(project / "out" / "text.npz").tokens)


def kill_before_the_first_checkpoint(project):
    (project / "out" / "checkpoint.pt").unlink()
    (project / "out" / "head").rename(project / "head")


OTHER = ["data.sources=[{path: other.jsonl}]", "data.limit=20", "data.max_length=16"]


@pytest.mark.parametrize("change", OTHER)
def test_a_run_that_begins_anew_has_the_text_of_its_config(run, project, capsys, change):
    run()
    before = tokens(project)
    kill_before_the_first_checkpoint(project)
    run(change)
    assert tokens(project) != before
    assert "text.npz is of other text than data.sources" in capsys.readouterr().err


def test_a_file_that_was_mended_meanwhile_is_read_again(run, project):
    run()
    before = tokens(project)
    kill_before_the_first_checkpoint(project)
    (project / "other.jsonl").replace(project / "talk.jsonl")
    run()
    assert tokens(project) > before


@pytest.mark.parametrize("change", OTHER)
def test_a_run_does_not_go_on_with_other_text(run, project, change):
    run()
    before = (project / "out" / "text.npz").read_bytes()
    with pytest.raises(SpecError, match="belongs to a run with another training text"):
        run(change, "steps=4", resume=True)
    assert (project / "out" / "text.npz").read_bytes() == before
    assert run("steps=4", resume=True).step == 4


def test_a_run_goes_on_where_its_text_lies_elsewhere_or_is_gone(run, project, capsys):
    run()
    (project / "talk.jsonl").rename(project / "moved.jsonl")
    assert run("steps=3", resume=True).step == 3
    assert run("steps=4", "data.sources=[{path: moved.jsonl}]", resume=True).step == 4
    assert capsys.readouterr().err.count("tokenising") == 1
