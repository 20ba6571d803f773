"""What is wrong with a run is one sentence, said before the target's weights are loaded."""

import json
import shutil

import pytest
import torch

from eagle.errors import IncompatibleError
from eagle.plugin.roles import BuildContext
from eagle.testing import tiny_head, tiny_target
from eagle.train.run import run as module
from eagle.train.run.checks import check_head
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec
from eagle_plugins.losses import EagleLoss, EagleLossConfig
from tests.train.words import write_project

EAGLE = EagleLoss(EagleLossConfig(), BuildContext())
CONFIG = """
target: {model: target, dtype: float32}
data: {sources: [{path: talk.jsonl}], length: 32, heldout: 0.1}
batch: 2
steps: 2
tensorboard: false
evaluation: {every: null, heldout: 0}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_project(folder)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(
        module, "load_target", lambda *_: pytest.fail("the target's weights were loaded")
    )
    return tmp_path


@pytest.fixture
def fails(project, capsys):
    """Train and return the error, one line, and that nothing of it is a mistake of ours."""
    from eagle.cli import main

    def call(*overrides):
        words = [word for one in overrides for word in ("--set", one)]
        with pytest.raises(SystemExit) as exit_:
            main(["train", str(project / "run.yaml"), *words, "--set", f"output={project / 'out'}"])
        assert exit_.value.code == 2
        return " ".join(capsys.readouterr().err.split())

    return call


def talk(*turns):
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def write(project, *records):
    (project / "talk.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def test_an_empty_dataset(project, fails):
    write(project)
    assert "talk.jsonl holds no conversation and no text" in fails()


def test_no_conversation_with_an_assistants_turn(project, fails):
    write(project, talk(("user", "w9")), talk(("user", "w9"), ("assistant", "")))
    said = fails()
    assert "nothing can be learned from the 2 conversations of data.sources" in said
    assert "2 without an answer, 0 that the chat template refuses" in said


def test_conversations_that_the_template_refuses(project, fails):
    write(project, talk(("user", "w9"), ("tool", "w8"), ("assistant", "w7")))
    assert "0 without an answer, 1 that the chat template refuses" in fails()


def test_a_template_without_a_boundary(project, fails):
    template = "{% for m in messages | reverse %}{{ m.content }} {% endfor %}"
    (project / "target" / "chat_template.jinja").write_text(template)
    assert "the chat template has no boundary between question and answer" in fails()


def test_a_target_without_a_template(project, fails):
    (project / "target" / "chat_template.jinja").unlink()
    assert "the target has no chat template" in fails()


def test_a_target_without_a_tokenizer(project, fails):
    for path in [*(project / "target").glob("token*"), *(project / "target").glob("chat*")]:
        path.unlink()
    assert "the target has no tokenizer" in fails()


def test_conversations_that_are_cut_are_counted(project, fails):
    said = fails("data.max_length=12", "data.length=4000", "target.device=cpu")
    assert "data.length: 4000 is more than the 512 tokens" in said
    said = fails("data.max_length=12", "data.length=512")
    assert "Cut at 12 tokens: " in said
    assert "Cut at 12 tokens: 0." not in said
    assert "not enough for one row of 512" in said


def test_a_tokenizer_of_another_model(project, fails):
    config = json.loads((project / "target" / "config.json").read_text())
    (project / "target" / "config.json").write_text(json.dumps(config | {"vocab_size": 40}))
    said = fails()
    assert "know 40 tokens only" in said
    assert "the tokenizer in the target's folder belongs to another model" in said


def test_text_that_was_packed_with_another_tokenizer(project, fails, make_corpus):
    make_corpus().save(project / "text.npz")
    said = fails(f"data.packed={project / 'text.npz'}")
    assert "was tokenised with another tokenizer or chat template" in said


def test_packed_text_with_tokens_that_the_target_does_not_have(project, fails, make_corpus):
    make_corpus(vocab=100).save(project / "text.npz")
    for path in [*(project / "target").glob("token*"), *(project / "target").glob("chat*")]:
        path.unlink()
    said = fails(f"data.packed={project / 'text.npz'}")
    assert "text.npz holds token 9" in said
    assert "know 64 tokens only: it was made with another tokenizer" in said


def test_too_little_text_for_a_row(project, fails):
    write(project, talk(("user", "w9"), ("assistant", "w7 w8")))
    said = fails("data.heldout=0")
    assert "tokens (0 of 1 conversations are held out), not enough for one row of 32" in said


def test_everything_held_out(project, fails):
    said = fails("data.heldout=0.999")
    assert "the training text has 0 tokens (60 of 60 conversations are held out)" in said


def test_answers_with_nothing_to_learn(project, fails):
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}w3 {{ m.content }} w4 "
        "{% else %}{{ m.content }} {% endif %}{% endfor %}"
    )
    (project / "target" / "chat_template.jinja").write_text(template)
    write(project, *[talk(("user", "w9 w8 w7"), ("assistant", "w6"))] * 20)
    assert "no answer in the training text has two tokens in a row" in fails("data.heldout=0")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target.dtype=float16", "target.dtype: training needs bfloat16 or float32"),
        ("target.model=none/none/none", "there is no folder none/none/none"),
        ("head.weight=x", "head.weight: unknown key. Did you mean 'weights'?"),
        ("head=none", "the draft head 'none' cannot be trained"),
        ("features=last-hiden", "Did you mean 'last-hidden'"),
    ],
)
def test_settings_that_do_not_fit(fails, override, message):
    assert message in fails(override)


def test_a_head_that_was_trained_for_another_target(project, fails):
    other = tiny_target("llama-gqa", hidden_size=64)
    tiny_head(other).save(project / "head")
    said = fails("start=checkpoint", f"head.weights={project / 'head'}")
    assert "has hidden_size 64, the target" in said
    assert "has 32; a head only works with the target it was trained for" in said


class Wide:
    layers = (1,)

    def feature_size(self, info):
        return 2 * info.hidden_size

    def extract(self, last, hidden_states):
        return torch.cat((last, hidden_states[0]), dim=-1)


def test_a_fresh_head_that_does_not_take_the_features():
    target = tiny_target("llama-gqa")
    spec = load_train_spec("tiny")
    with pytest.raises(
        IncompatibleError, match=r"head: the draft head 'eagle' does not fit: .*features of size 64"
    ):
        check_head(spec, tiny_head(target), Wide(), EAGLE, target)


def test_a_fresh_head_whose_states_cannot_be_compared_with_the_features():
    target = tiny_target("llama-gqa")

    class Narrow:
        def train_states(self, tokens, own, features, positions, visible):
            return features[0][..., :32]

        def feed_back(self, states):
            return states

        def logits(self, states):
            return target.logits(states)

    with pytest.raises(IncompatibleError, match=r"feeds back has size 32, the features .* 64"):
        check_head(load_train_spec("tiny"), Narrow(), Wide(), EAGLE, target)
    tokens_alone = EagleLoss(EagleLossConfig(feature=0), BuildContext())
    check_head(load_train_spec("tiny"), Narrow(), Wide(), tokens_alone, target)


def test_a_relative_target_starts_at_the_recipes_folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "there")
    spec = load_train_spec(tmp_path / "there" / "run.yaml", [f"output={tmp_path / 'out'}"])
    assert train(spec).finished


def test_plain_text_trains_and_is_measured_too(made, tmp_path):
    shutil.copytree(made, tmp_path / "there")
    words = " ".join(f"w{3 + n % 61}" for n in range(3000))
    (tmp_path / "there" / "book.txt").write_text(words)
    overrides = [
        'data.sources=[{"path": "book.txt"}]',
        "data.max_length=64",
        "data.heldout=0.2",
        f"output={tmp_path / 'out'}",
        "evaluation={heldout: 2, max_new_tokens: 4, every: null}",
    ]
    outcome = train(load_train_spec(tmp_path / "there" / "run.yaml", overrides))
    assert outcome.finished
    assert outcome.measured.score >= 1
