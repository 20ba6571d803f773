"""What vLLM made of an exported head is judged by acceptance, not by words."""

import json

import pytest

from check_vllm.main import compared, method_of

TEXTS = [[5, 6, 7, 8, 9], [3, 4, 5]]


def served(drafts, accepted, texts=TEXTS):
    return {"version": "0.0", "drafts": drafts, "accepted": accepted, "texts": texts}


def test_tau_leaves_out_the_tokens_that_prompts_give():
    found = compared("head", "eagle", served(4, 2), TEXTS, [2, 1])
    assert found.ours == (4 + 2) / 3
    assert found.theirs == 1.5
    assert found.alike == found.texts == 2


@pytest.mark.parametrize(("accepted", "held"), [(96, True), (104, True), (80, False), (120, False)])
def test_a_head_that_gives_more_or_less_than_here_is_not_what_was_exported(accepted, held):
    texts = [list(range(201))]
    assert compared("head", "eagle", served(100, accepted, texts), texts, [100]).held is held


def test_texts_that_part_are_counted_and_no_failure():
    found = compared("head", "eagle", served(4, 4, [[5, 6], [3, 4, 5]]), TEXTS, [2, 1])
    assert (found.alike, found.texts) == (1, 2)
    assert found.held


@pytest.mark.parametrize(
    ("kinds", "method"),
    [(["LlamaForCausalLM"], "eagle"), (["LlamaForCausalLMEagle3"], "eagle3")],
)
def test_the_method_is_that_of_the_exported_files(tmp_path, kinds, method):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": kinds}))
    assert method_of(tmp_path) == method
