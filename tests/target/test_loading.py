"""Code that comes with a model is run where the spec says so, and nobody is asked."""

import io
import json
import subprocess
import sys

import pytest

from eagle.errors import TargetError
from eagle.spec.schema import TargetSpec
from eagle.target import load_target, loading
from eagle.testing import tiny_target

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
(Path({folder!r}) / "ran").touch()
class Config(LlamaConfig):
    model_type = "mine"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokens(PreTrainedTokenizerFast):
    pass
def generate(model, *args, **kwargs):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder with code, which leaves a file where it is run; and a user who says yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "py"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = tmp_path / "model"
    tiny_target().model.save_pretrained(found)
    (found / "code.py").write_text(CODE.format(folder=str(tmp_path)))
    return found


def config_of(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def has_run(folder):
    return (folder.parent / "ran").exists()


AUTO = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


def test_a_model_of_its_own_code_is_refused_in_one_sentence(folder):
    config_of(folder, model_type="mine", auto_map=AUTO)
    with pytest.raises(TargetError) as caught:
        load_target(TargetSpec(model=str(folder), device="cpu"))
    assert "is run only if target.trust_remote_code is true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not has_run(folder)


def test_a_known_model_with_code_beside_is_loaded_without_it(folder):
    config_of(folder, auto_map=AUTO)
    (folder / "custom_generate").mkdir()
    (folder / "code.py").rename(folder / "custom_generate" / "generate.py")
    load_target(TargetSpec(model=str(folder), device="cpu", dtype="float32"))
    assert not has_run(folder)


def test_a_tokenizer_of_its_own_code_is_refused(folder):
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "Tokens", "auto_map": {"AutoTokenizer": ["code.Tokens"] * 2}}
        )
    )
    config_of(folder, model_type="mine", auto_map=AUTO)
    source = loading.locate(TargetSpec(model=str(folder)))
    with pytest.raises(TargetError, match=r"the tokenizer of .* target\.trust_remote_code is true"):
        loading.load_tokenizer(source)
    assert not has_run(folder)


def test_code_is_run_where_the_spec_trusts_it(folder):
    config_of(folder, model_type="mine", auto_map=AUTO)
    spec = TargetSpec(model=str(folder), trust_remote_code=True)
    _, config = loading.describe(loading.locate(spec))
    assert config.model_type == "mine"
    assert has_run(folder)


def test_the_command_line_runs_no_code_whatever_stands_on_standard_input(folder):
    config_of(folder, model_type="mine", auto_map=AUTO)
    done = subprocess.run(
        [sys.executable, "-m", "eagle.cli", "chat", "--target", str(folder)],
        input="yes\n" * 9,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("target.trust_remote_code") == 1
    assert not has_run(folder)
