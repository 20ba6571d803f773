"""Files of prompts: what a line is."""

import json

import pytest

from eagle.bench.prompts import read_conversations, read_prompts
from eagle.errors import DataError

# What `str.splitlines` takes for the end of a line, and a text file does not.
ODD = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0cb"]


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
def test_only_the_ends_of_lines_part_prompts(text, end, tmp_path):
    lines = [json.dumps({"turns": [turn]}, ensure_ascii=False) for turn in (text, "c")]
    jsonl, plain = tmp_path / "prompts.jsonl", tmp_path / "prompts.txt"
    jsonl.write_bytes(end.join(lines).encode())
    plain.write_bytes(f"{text}{end}{end}c{end}".encode())
    assert read_prompts(jsonl) == read_prompts(plain) == [text, "c"]


def test_of_a_conversation_all_turns_or_the_first_are_read(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"turns": ["a", "b"]}\n{"turns": ["c"]}\n')
    assert read_conversations(file) == [["a", "b"], ["c"]]
    assert read_prompts(file) == ["a", "c"]
    file.write_text('{"turns": ["a", " "]}\n')
    assert read_prompts(file) == ["a"]
    with pytest.raises(DataError, match="each of its turns should be a text"):
        read_conversations(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"turns": "a"}', "prompts.jsonl:1: should be a JSON object"),
        ('{"turns": ["\\ud800"]}', "prompts.jsonl:1: holds half of a surrogate pair"),
        ('{"turns": ' + "[" * 100_000, "prompts.jsonl:1: should be a JSON object"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(line, message, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / "prompts.jsonl")


def test_another_encoding_is_refused_with_its_byte(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"is not UTF-8 text \(byte 3\)"):
        read_prompts(tmp_path / "prompts.txt")


def test_what_never_ends_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    monkeypatch.setattr("eagle.bench.prompts._MOST", 10)
    file.write_text("é" * 5)
    assert read_prompts(file) == ["é" * 5]
    file.write_text("é" * 6)
    with pytest.raises(DataError, match="is longer than the 10 bytes that are read"):
        read_prompts(file)
