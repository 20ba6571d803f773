import pytest

from eagle.errors import SpecError
from eagle.train.spec.config import TrainSpec
from eagle.train.spec.recipe import load_train_spec, shipped_train_specs


@pytest.mark.parametrize("name", list(shipped_train_specs()))
def test_shipped_recipes_are_valid(name):
    assert load_train_spec(name).document.label == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lr=1", "optimiser: unknown key"),
        ("optimizer.lr=-1", "optimizer.lr"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("loss={feature: 0, token: 0}", "should not both be 0"),
        ("data.heldout=1", "data.heldout"),
        ("evaluation.trees=[]", "evaluation.trees"),
        ("batch=0", "batch"),
        ("target.device=gpu", "cpu, cuda or cuda:N"),
    ],
)
def test_wrong_values_are_named_with_their_key(override, message):
    with pytest.raises(SpecError, match=message):
        load_train_spec("tiny", [override])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'tiny'"):
        load_train_spec("tinny")


def test_missing_file_is_named():
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read"):
        load_train_spec("none.yaml")


def test_schema_describes_every_key():
    schema = TrainSpec.model_json_schema()
    assert set(schema["properties"]) == set(TrainSpec.model_fields)


def test_where_text_lies_and_how_long_a_process_runs_do_not_make_another_run():
    plain = load_train_spec("tiny")
    moved = load_train_spec("tiny", ["data.packed=x.npz", "max_seconds=5", "loss.chunk=7"])
    assert plain.identity() == moved.identity()
    assert plain.identity() != load_train_spec("tiny", ["seed=1"]).identity()
