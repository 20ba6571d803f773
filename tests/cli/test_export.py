"""An EAGLE-3 head on the command line: told, refused, used, exported."""

import json
import shlex

import pytest
import torch

from eagle.assets import model_folder
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role


@pytest.fixture(scope="session")
def head3(pair, tmp_path_factory):
    """The folder of an untrained EAGLE-3 head for the tiny target."""
    target, folder = pair[0], tmp_path_factory.mktemp("three") / "head"
    strategy = default_registry().get(Role.HEAD, "eagle3").strategy
    config = strategy.config(layers=(0, 1, 2), draft_vocab_size=40)
    head = strategy.build(config, BuildContext(target.info, fresh=True))
    head.choose_vocabulary(torch.arange(64))
    head.initialise(target, 0)
    head.save(folder)
    return folder


def options(folders, head3, *more):
    given = (f"head.weights={head3}", f"target.model={folders.target}", *more)
    return [word for setting in given for word in ("--set", setting)]


TOLD = (
    "head: a draft head of EAGLE-3 in the layout of authors: hidden states 0, 1, 2 with no norm "
    "in front of the FC, draft vocabulary 40 of 64, norm_before_residual false, fed back "
    "before-norm"
)


def test_check_and_show_say_what_a_folder_holds(eagle, folders, head3):
    ran = eagle("spec", "check", "chain", *options(folders, head3))
    assert (ran.status, ran.err) == (0, "")
    assert TOLD in ran.out
    shown = eagle("spec", "show", "chain", *options(folders, head3))
    assert shown.status == 0
    assert TOLD in shown.err
    assert "features: auto" in shown.out


def test_check_refuses_other_layers_than_the_heads(eagle, folders, head3):
    ran = eagle("spec", "check", "chain", *options(folders, head3, "features=last-hidden"))
    assert ran.status == 2
    assert "joins the hidden states 0, 1, 2 of the target, but feature extractor" in ran.err
    assert "use `features: layers`, which follows the head" in ran.err


def test_a_head_that_is_not_what_the_spec_insists_on_is_refused(eagle, folders, head3):
    ran = eagle("spec", "check", "chain", *options(folders, head3, "head.name=eagle"))
    assert ran.status == 2
    assert "a draft head of EAGLE-3, which is not read as" in ran.err
    assert "head.name=eagle3" in ran.err


def test_generate_takes_whatever_a_folder_holds(eagle, folders, head3):
    more = options(folders, head3, "target.dtype=float32")
    ran = eagle("generate", "w5 w7 w9", "--raw", "--spec", "chain", "--max-new-tokens", "6", *more)
    assert ran.status == 0, ran.err
    plain = eagle(
        "generate", "w5 w7 w9", "--raw", "--spec", "plain", "--max-new-tokens", "6",
        "--set", f"target.model={folders.target}", "--set", "target.dtype=float32",
    )  # fmt: skip
    assert ran.out == plain.out


def test_export_writes_a_folder_and_prints_the_command(eagle, folders, head3, tmp_path):
    out = tmp_path / "out"
    ran = eagle("export", str(head3), str(out), "--to", "vllm", "--target", str(folders.target))
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"vllm serve {folders.target} --speculative-config '")
    settings = json.loads(ran.out.strip().partition("--speculative-config ")[2].strip("'"))
    assert settings == {"method": "eagle3", "model": str(out), "num_speculative_tokens": 3}
    assert json.loads((out / "config.json").read_text())["architectures"] == [
        "LlamaForCausalLMEagle3"
    ]
    assert eagle("spec", "check", "chain", *options(folders, out)).status == 0


def test_the_command_that_is_printed_can_be_pasted_though_a_path_has_a_space(
    eagle, folders, head3, tmp_path
):
    out = tmp_path / "my head"
    ran = eagle("export", str(head3), str(out), "--to", "eagle", "--target", str(folders.target))
    assert ran.status == 0, ran.err
    assert shlex.split(ran.out)[-1] == f"head.weights={out}"


def test_export_for_another_target_is_refused(eagle, head3, tmp_path):
    ran = eagle("export", str(head3), str(tmp_path / "out"), "--to", "vllm")
    assert ran.status == 2
    assert "the target 'smollm2-135m-instruct' has" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.embedded
@pytest.mark.parametrize(("engine", "known"), [("vllm", True), ("eagle", False)])
def test_other_engines_are_told_the_embedded_targets_folder(eagle, tmp_path, engine, known):
    """Nobody else knows the model by the name that it has here."""
    ran = eagle("export", "auto", str(tmp_path / "out"), "--to", engine)
    assert ran.status == 0, ran.err
    assert (str(model_folder()) in ran.out) is known
