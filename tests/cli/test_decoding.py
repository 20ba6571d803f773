"""What commands that decode have in common: which answers are worth compiling for."""

import pytest
import torch

from eagle.cli import decoding
from eagle.spec import load_spec


@pytest.mark.parametrize(
    ("device", "asked", "compiles"),
    [
        ("cuda", "auto", False),
        ("cuda", "true", True),
        ("cuda", "false", False),
        ("cpu", "auto", "auto"),
        ("cpu", "true", True),
    ],
)
def test_a_gpu_does_not_compile_for_a_few_tokens_unless_asked_to(
    device, asked, compiles, monkeypatch
):
    monkeypatch.setattr("eagle.target.resolve_device", lambda name: torch.device(device))
    spec = load_spec("eagle", [f"runtime.compile={asked}", "runtime.max_batch=3"])
    found = decoding.uncompiled(spec)
    assert found.runtime.compile == compiles
    assert found.runtime.max_batch == 3
    assert found.model_copy(update={"runtime": spec.runtime}) == spec


def test_a_tree_that_fits_compiled_cycles_is_decoded_by_them(monkeypatch):
    monkeypatch.setattr("eagle.target.resolve_device", lambda name: torch.device("cuda"))
    spec = load_spec("eagle", ["tree.size=auto"])
    assert decoding.uncompiled(spec) is spec


def test_a_target_beside_its_spec_is_found(eagle, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "model").symlink_to(folders.target)
    target = "target: {model: ./model, dtype: float32}"
    head = f"head: {{name: eagle, weights: {folders.head}}}"
    (tmp_path / "specs" / "mine.yaml").write_text(f"{target}\n{head}\ntree: chain\n")
    ran = eagle("generate", "w5", "--spec", "specs/mine.yaml", "--max-new-tokens", "3")
    assert (ran.status, len(ran.out.split())) == (0, 3), ran.err


@pytest.mark.parametrize(
    ("options", "worth", "brief"), [((), 13, True), ((), 12, False), (("--compare",), 13, False)]
)
def test_few_tokens_are_those_of_one_answer(options, worth, brief, eagle, folders, monkeypatch):
    asked = []
    monkeypatch.setattr(decoding, "_WORTH_COMPILING", worth)
    monkeypatch.setattr(decoding, "uncompiled", lambda spec: asked.append(spec) or spec)
    ran = eagle("generate", *folders.options("--max-new-tokens", "12"), "w5 w6", *options)
    assert ran.status == 0, ran.err
    assert bool(asked) == brief
