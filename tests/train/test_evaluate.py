"""Files of prompts that a head is measured on."""

import json

import pytest

from eagle.train.evaluation.answers import file_prompts
from tests.cli.conftest import word_tokenizer


@pytest.mark.parametrize("space", ["\u2028", "\x85"], ids=ascii)
def test_only_the_ends_of_lines_part_prompts(space, tmp_path):
    file = tmp_path / "prompts.jsonl"
    turns = [f"w5{space}w6", "w7"]
    lines = (json.dumps({"turns": [turn]}, ensure_ascii=False) + "\n" for turn in turns)
    file.write_text("".join(lines), encoding="utf-8")
    assert file_prompts(file, word_tokenizer(), 9) == [[5, 6], [7]]
