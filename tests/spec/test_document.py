from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eagle.errors import SpecError
from eagle.spec.document import Document, dump


class Colour(StrEnum):
    RED = "red"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(default=1, ge=1)
    rate: float = 0.5
    pair: tuple[int, int] | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    colour: Colour = Colour.RED
    paths: str | list[list[int]] = "named"
    flag: bool = False
    needed: str = ""
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"low, {self.low}, exceeds high, {self.high}")
        return self


def read(text: str) -> Outer:
    document = Document.parse(text, "a.yaml")
    return document.validate(Outer, document.data)


def problem(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        read(text)
    return str(caught.value)


def test_reads_what_yaml_1_2_means():
    made = read("inner: {rate: 1e-3, pair: [1, 2]}\nneeded: no\ncolour: red\nflag: true")
    assert made.inner.rate == 0.001
    assert made.inner.pair == (1, 2)
    assert made.needed == "no"
    assert made.colour is Colour.RED
    assert made.flag is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "inner:\n  cuont: 2",
            "a.yaml:2: inner.cuont: unknown key. Did you mean 'count'? "
            "Known keys: count, rate, pair.",
        ),
        ("inner:\n  count: '2'", 'a.yaml:2: inner.count: should be a valid integer, not "2".'),
        ("inner:\n  count: true", "a.yaml:2: inner.count: should be a valid integer, not true."),
        (
            "inner:\n  count: 0",
            "a.yaml:2: inner.count: should be greater than or equal to 1, not 0.",
        ),
        ("\n\ncolour: rde", "a.yaml:3: colour: should be 'red', not \"rde\". Did you mean 'red'?"),
        ("flag: yes", 'a.yaml:1: flag: should be a valid boolean, not "yes".'),
        ("inner: 3", "a.yaml:1: inner: should be a mapping, not 3."),
        ("paths:\n- [0, x]", 'a.yaml:2: paths.0.1: should be a valid integer, not "x".'),
        ("paths: 3", "a.yaml:1: paths: should be a valid string or a valid list, not 3."),
        ("low: 3\nhigh: 2", "a.yaml: low, 3, exceeds high, 2"),
        ("low: {1: 2}", 'a.yaml:1: low: should be a valid integer, not {"1": 2}.'),
    ],
)
def test_a_wrong_value_is_one_sentence_with_place_key_and_remedy(text, message):
    found = problem(text)
    assert found.startswith(message), found
    assert "\n" not in found


def test_several_mistakes_are_a_line_each():
    lines = problem("low: x\nhihg: 2\n").splitlines()
    assert lines == [
        'a.yaml:1: low: should be a valid integer, not "x".',
        "a.yaml:2: hihg: unknown key. Did you mean 'high'? "
        "Known keys: inner, colour, paths, flag, needed, low, high.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "a.yaml:1: not YAML: expected ',' or ']'"),
        ("a:\n\tb: 1", "a.yaml:2: not YAML: found character '\\t'"),
        ("", "a.yaml: must be a mapping of keys to values, but the file is empty"),
        ("- 1", "but the file is a list"),
        ("hello", "but the file is a string"),
        ("a: 1\n---\nb: 2", "not YAML: but found another document"),
        ("a: 1\nb: {c: 1, c: 2}", "a.yaml:2: b.c: is given twice"),
        ('a: 1\nb: ["\\ud800"]', "a.yaml:2: b.0: '\\ud800' is not text that UTF-8 can hold"),
        ('a: 1\nb: {"\\ud800": 1}', "a.yaml:2: b: '\\ud800' is not text that UTF-8 can hold"),
        ('a: 1\n"\\udc00x": 1', "a.yaml:2: '\\udc00x' is not text that UTF-8 can hold"),
        ("a: &x [*x]", "a.yaml:1: not YAML: aliases are not allowed"),
        ("a: !!python/object:os.system {}", "a.yaml:1: not YAML: could not determine"),
        ("a: \x00", "a.yaml: not YAML: unacceptable character"),
        ("a: " + "[" * 3000, "a.yaml: is nested too deeply"),
        ("a: " + "9" * 5000, "a.yaml: has a value that cannot be read: Exceeds the limit"),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused_with_its_line(text, message):
    with pytest.raises(SpecError) as caught:
        Document.parse(text, "a.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_very_many_mistakes_a_few_are_told_and_the_others_counted():
    text = "needed: 1\n" + "".join(f"kye{i}: 1\n" for i in range(2999))
    lines = problem(text).splitlines()
    assert len(lines) == 3
    assert lines[0] == "a.yaml:1: needed: should be a valid string, not 1."
    assert lines[2].startswith("a.yaml:3: kye1: unknown key.")
    assert lines[2].endswith(" 2,997 more are wrong: kye2, kye3, kye4 and 2,994 more")


def test_very_many_wrong_values_take_no_time():
    document = Document("spec", {"paths": [[0, "x"]] * 50_000})
    started = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        document.validate(Outer, document.data)
    assert "more are wrong: paths.3.1" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - started < 10


def test_a_text_longer_than_any_spec_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text("a: [" + "1, " * 300_000 + "1]")
    with pytest.raises(SpecError, match=r"long\.yaml: is longer than the 262,144 characters"):
        Document.read(path)


@pytest.mark.parametrize("name", ["a\0.yaml", "x" * 5000 + ".yaml", "\ud800.yaml"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(SpecError, match="cannot be read") as caught:
        Document.read(Path(name))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("deep", [70, 500, 3000])
def test_what_is_nested_deeper_than_any_spec_is_refused(deep):
    for assignment in (f"a.{'b.' * deep}c=1", f"a={'[' * deep}{']' * deep}"):
        with pytest.raises(SpecError, match="is nested too deeply") as caught:
            override("a: {}", assignment)
        assert len(str(caught.value)) < 120
    inner = {}
    for _ in range(3000):
        inner = {"a": inner}
    with pytest.raises(SpecError, match="spec: is nested too deeply"):
        Document("spec").validate(Outer, inner)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"gone\.yaml: cannot be read: No such file"):
        Document.read(tmp_path / "gone.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        Document.read(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(SpecError, match=r"latin\.yaml: not YAML: byte 3 is not UTF-8 text"):
        Document.read(tmp_path / "latin.yaml")


def override(text: str, *assignments: str) -> dict:
    return Document.parse(text, "a.yaml").override(assignments, {"tree": "static"}).data


@pytest.mark.parametrize(
    ("text", "assignment", "data"),
    [
        ("a: 1", "a=2", {"a": 2}),
        ("a: 1", "b=[4, 2]", {"a": 1, "b": [4, 2]}),
        ("a: 1", "b=x=y", {"a": 1, "b": "x=y"}),
        ("a: 1", "b=", {"a": 1, "b": None}),
        ("a: 1", "b.c.d=1e-3", {"a": 1, "b": {"c": {"d": 0.001}}}),
        ("tree: chain", "tree.depth=3", {"tree": {"name": "chain", "depth": 3}}),
        ("tree: {name: chain, depth: 1}", "tree.depth=3", {"tree": {"name": "chain", "depth": 3}}),
        ("tree: {name: chain, depth: 1}", "tree=none", {"tree": "none"}),
        ("a: 1", "tree.depth=3", {"a": 1, "tree": {"name": "static", "depth": 3}}),
    ],
)
def test_overrides_set_keys(text, assignment, data):
    assert override(text, assignment) == data


def test_overrides_leave_the_document_as_it_was():
    document = Document.parse("tree: {depth: 1}", "a.yaml")
    document.override(["tree.depth=3"], {})
    assert document.data == {"tree": {"depth": 1}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a", "--set a: must look like path.to.key=value"),
        ("=1", "--set =1: must look like path.to.key=value"),
        ("a..b=1", "--set a..b=1: must look like path.to.key=value"),
        ("a=[1", "--set a=[1: the value is not YAML: expected ',' or ']'"),
        ("a.b=1", "--set a.b=1: a is 1, a number without keys; set it as a whole"),
        ("a={b: 1, b: 2}", "--set a={b: 1, b: 2}: b: is given twice"),
        ('a="\\ud800"', "'\\ud800' is not text that UTF-8 can hold"),
        ("a=\udcff", "--set: 'a=\\udcff' is not text that UTF-8 can hold"),
        ("a.\udcff=1", "--set: 'a.\\udcff=1' is not text that UTF-8 can hold"),
        ('a={"\\ud800": 1}', "'\\ud800' is not text that UTF-8 can hold"),
    ],
)
def test_a_malformed_override_is_refused(assignment, message):
    with pytest.raises(SpecError) as caught:
        override("a: 1", assignment)
    assert message in str(caught.value)


def test_surrogate_pairs_are_the_characters_that_they_stand_for():
    text = 'a: "\\ud83d\\ude00"\n"\\ud83d\\ude01": 1\n'
    assert override(text, 'b="\\ud83d\\ude02"') == {"a": "😀", "😁": 1, "b": "😂"}
    document = Document.parse(text, "a.yaml")
    with pytest.raises(SpecError, match=r"a\.yaml:2: 😁: unknown key"):
        document.validate(Outer, document.data)


def test_messages_name_the_override_that_is_wrong():
    document = Document.parse("low: 1", "a.yaml").override(["inner.cout=3", "low=x"], {})
    with pytest.raises(SpecError) as caught:
        document.validate(Outer, document.data)
    assert "--set inner.cout=3: inner.cout: unknown key" in str(caught.value)
    assert "--set low=x: low: should be a valid integer" in str(caught.value)


def test_dumped_text_reads_back():
    data = {"a": "1e-3", "b": "no", "c": None, "d": [1, 2.5, True], "e": {"f": "true"}, "g": "ü"}
    assert Document.parse(dump(data), "x").data == data
