"""Training configs and training text of any kind: taken, or refused in sentences, nothing built."""

import json
import os
import resource
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle.errors import DataError, EagleError, SpecError
from eagle.testing import tiny_target
from eagle.train.data.corpus import Corpus
from eagle.train.data.prepare import lost
from eagle.train.data.sources import read_sources
from eagle.train.data.template import Encoder
from eagle.train.evaluation.answers import Answer, file_prompts
from eagle.train.evaluation.grouping import MASK
from eagle.train.evaluation.grouping import parts as parts_of
from eagle.train.evaluation.kept import KeptAnswers, KeptSet
from eagle.train.run import run as module
from eagle.train.run.checks import check_target, memory_explained
from eagle.train.run.run import train
from eagle.train.spec.config import DEEPEST, SourceSpec, TrainSpec
from eagle.train.spec.recipe import load_train_spec
from tests.train.test_bad_input import CONFIG
from tests.train.words import word_tokenizer, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_project(folder, talks=20)
    (folder / "run.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def fails(project, tmp_path, capsys, monkeypatch):
    """Train and return the one sentence; neither the target is loaded nor a checkpoint written."""
    from eagle.cli import main

    monkeypatch.setattr(module, "load_target", lambda *_: pytest.fail("weights were loaded"))

    def call(*overrides):
        words = [word for one in overrides for word in ("--set", one)]
        with pytest.raises(SystemExit) as exit_:
            main(
                ["train", str(project / "run.yaml"), *words, "--set", f"output={tmp_path / 'out'}"]
            )
        assert exit_.value.code == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"data.limit={10**20}", "data.limit: should be less than or equal to"),
        (f"batch={10**6}", "batch: should be less than or equal to 16384"),
        (f"accumulate={10**6}", "accumulate: should be less than or equal to 16384"),
        (f"evaluation.batch={10**6}", "evaluation.batch: should be less"),
        (f"loss.chunk={10**9}", "loss.chunk: should be less"),
        (f"loss.top_k={10**6}", "loss.top_k: 1000000 is more than the 64 tokens"),
        ("optimizer.betas=[1]", "optimizer.betas"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.betas=[]", "optimizer.betas"),
        ("optimizer.betas=[0.9, 0.9, 0.9]", "optimizer.betas"),
        ("noise.uniform=1e308", "noise.uniform: should be less than or equal to"),
        ("optimizer.lr=1e308", "optimizer.lr: should be less than or equal to"),
        ("loss.feature=1e300", "loss.feature: should be less than or equal to"),
        ("evaluation.chain=600", f"evaluation.chain: should be less than or equal to {DEEPEST}"),
        ("evaluation.trees=[{name: chain, depth: 60}]", "is 60 levels deep; rank replay measures"),
        ("batch=16384", "a step needs "),
        ("accumulate=16384", "a step needs "),
        ('data.packed="a\\0b"', "data.packed: should be the path of a file"),
        ("data.packed=" + "a" * 5000, "data.packed: should be the path of a file"),
        ("data.cache=~nobody-here/x", "data.cache: should be the path of a file"),
    ],
)
def test_absurd_values_are_refused_by_their_key(fails, monkeypatch, override, message):
    monkeypatch.setattr("eagle.train.run.checks.free_memory", lambda device, reusable: 2**22)
    assert message in fails(*(["batch=1"] if "batch" not in override else []), override)


def test_a_step_that_fits_is_not_refused(project):
    spec = load_train_spec(project / "run.yaml")
    target = tiny_target("llama-gqa")
    features = type("Features", (), {"feature_size": lambda self, info: info.hidden_size})()
    check_target(spec, target, features, 1)
    with pytest.raises(SpecError, match=r"needs .* GiB of memory at least, and .* are free: lower"):
        check_target(
            load_train_spec(project / "run.yaml", ["batch=16384"]), target, features, 10**9
        )


def test_of_a_gpus_memory_what_live_tensors_have_is_not_free(project, monkeypatch):
    spec = load_train_spec(project / "run.yaml")
    target = SimpleNamespace(
        **{name: getattr(tiny_target("llama-gqa"), name) for name in ("info", "dtype", "capacity")},
        device=torch.device("cuda", 0),
    )
    features = type("Features", (), {"feature_size": lambda self, info: info.hidden_size})()
    allocated = {"now": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**33)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated["now"])
    check_target(spec, target, features, 1)  # what PyTorch keeps and nobody uses
    allocated["now"] = 2**33
    with pytest.raises(SpecError, match=r"of memory at least, and 0\.0 are free"):
        check_target(spec, target, features, 1)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9")],
)
def test_memory_that_runs_out_is_explained(project, error):
    with (
        pytest.raises(SpecError, match="memory ran out: lower batch"),
        memory_explained(load_train_spec(project / "run.yaml")),
    ):
        raise error


def test_other_errors_are_left_alone(project):
    with (
        pytest.raises(RuntimeError, match="a mistake"),
        memory_explained(load_train_spec(project / "run.yaml")),
    ):
        raise RuntimeError("a mistake")


def test_deep_replay_takes_fewer_texts_at_once():
    answers = [Answer((1,) * 100, (2,) * 100)] * 40
    for levels in (1, 5, DEEPEST):
        parts = list(parts_of(answers, 8192, levels, whole=True))
        assert sorted(i for part in parts for i in part) == list(range(40))
        assert all(len(part) * 200 <= 8192 for part in parts)
        assert all(len(part) == 1 or len(part) * (levels * 200) ** 2 <= MASK for part in parts)


@pytest.mark.parametrize(
    "text",
    ['{"turns": [3]}', '{"turns": ["\\ud800"]}', "[" * 10**5, '{"turns": []}', "3", "\xff"],
)
def test_prompts_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "prompts.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"prompts\.jsonl"):
        file_prompts(tmp_path / "prompts.jsonl", word_tokenizer(), 10)


def test_a_line_that_is_no_prompt_is_named(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"turns": ["w9"]}\n\n{"turns": "w9\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:3: should be"):
        file_prompts(tmp_path / "prompts.jsonl", word_tokenizer(), 10)


def test_kept_answers_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    one = KeptSet(source="words", answers=(((1, 2), (3,)),))
    kept, path = KeptAnswers(target="t", asked={}, sets={"words": one}), tmp_path / "answers.json"
    kept.write(path)
    write_text = Path.write_text

    def full(self, text, **options):
        write_text(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        kept.write(path)
    assert KeptAnswers.read(path, "t", {}, 10) == kept
    assert [file.name for file in tmp_path.iterdir()] == ["answers.json"]


def test_prompts_need_a_template_that_renders_them(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"turns": ["w9"]}')
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataError, match="does not render a prompt"):
        file_prompts(tmp_path / "prompts.jsonl", tokenizer, 10)
    for without in (None, type("Bare", (), {"chat_template": None})()):
        with pytest.raises(DataError, match="need a chat template"):
            file_prompts(tmp_path / "prompts.jsonl", without, 10)


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}", "{{ 1 / 0 }}"])
def test_a_template_that_renders_nothing_is_refused_with_its_reason(template):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    from eagle.train.data.sources import Conversation

    talk = Conversation("a", (("user", "w9"), ("assistant", "w8")))
    with pytest.raises(DataError, match="cannot render a question and its answer"):
        list(Encoder(tokenizer, [2], 100).encode([talk]))


@pytest.mark.parametrize("name", ["tokens", "answers", "lengths", "groups", "info"])
@pytest.mark.parametrize("kind", ["float64", "empty", "two", "short"])
def test_packed_text_of_other_arrays_is_refused(tmp_path, make_corpus, name, kind):
    import numpy as np

    path = tmp_path / "text.npz"
    make_corpus().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    change = {
        "float64": lambda a: a.astype("float64"),
        "empty": lambda a: a[:0],
        "two": lambda a: a[None],
        "short": lambda a: a[:-1],
    }
    changed = change[kind](arrays[name])
    if name == "info" and kind == "two":  # its bytes are the same
        return
    np.savez(path, **arrays | {name: changed})
    with pytest.raises(DataError, match="not packed text"):
        Corpus.load(path)


def test_packed_text_that_says_nothing_of_itself_is_refused(tmp_path, make_corpus):
    import numpy as np

    path = tmp_path / "text.npz"
    make_corpus().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"info": np.frombuffer(b"[1]", dtype=np.uint8)})
    with pytest.raises(DataError, match="packed by another version"):
        Corpus.load(path)


SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from([10**6, 10**9, 10**30, 1e308, -1, 0, 1, 2, 0.5, "auto", "\0", "~x/y", "a/b"])
)  # fmt: skip
VALUE = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(st.text(max_size=5), SCALAR)


def keys():
    """Return the paths of all keys of a training spec."""
    found = []
    for name, field in TrainSpec.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        found += [(name, key) for key in inner] if inner else [(name,)]
    return found


ASSIGNMENTS = st.lists(st.tuples(st.sampled_from(keys()), VALUE), min_size=1, max_size=4)


class Reached(Exception):  # noqa: N818
    """Everything was checked that can be before the target's weights are loaded."""


def config_is_taken_or_refused(project, monkeypatch, assignments):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = yaml.safe_load(CONFIG)
        values["output"] = str(folder / "out")
        values["target"]["model"] = str(project / "target")
        for path, value in assignments:
            if path[-1] in ("output", "cache", "device_map", "tp_plan", "model", "sources"):
                continue
            here = values
            for key in path[:-1]:
                here = here.setdefault(key, {})
                if not isinstance(here, dict):
                    return
            here[path[-1]] = value
        shutil.copy(project / "talk.jsonl", folder)
        (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8", newline="\n")
        with monkeypatch.context() as patch:
            patch.setattr(module, "load_target", lambda *_: (_ for _ in ()).throw(Reached()))
            try:
                train(load_train_spec(folder / "run.yaml"))
            except Reached:
                said = ""
            except EagleError as error:
                said = str(error)
            else:
                pytest.fail("nothing was trained, and nothing was said")
            if said:
                assert len(said.splitlines()) <= 2 * len(assignments), said
                assert all(len(line) < 1000 for line in said.splitlines()), said


BOUNDED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LONG = settings(BOUNDED, max_examples=int(os.environ.get("EAGLE_FUZZ", "3000")))


@BOUNDED
@given(ASSIGNMENTS)
def test_any_config_is_taken_or_refused(project, monkeypatch, assignments):
    config_is_taken_or_refused(project, monkeypatch, assignments)


@pytest.mark.fuzz
@LONG
@given(ASSIGNMENTS)
def test_any_config_is_taken_or_refused_for_long(project, monkeypatch, assignments):
    config_is_taken_or_refused(project, monkeypatch, assignments)


@pytest.mark.parametrize(
    "counts", [None, 3, [1], {}, {"changed": "x", "dropped": [1]}, {"dropped": {"a": None}}]
)
def test_counts_of_a_file_may_be_anything(counts):
    assert all("0" in line for line in lost(counts))


WORDS = st.sampled_from(["", "w9", " w8 w7", "\n  w6", "<eos>", "w5 w4\n", "\ud800"])
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "model", "tool", "Human"]) | SCALAR,
        "from": st.sampled_from(["human", "gpt", "system"]) | SCALAR,
        "content": WORDS | SCALAR | st.lists(st.fixed_dictionaries({"text": WORDS}), max_size=2),
        "value": WORDS | SCALAR,
        "tool_calls": VALUE,
        "reasoning_content": VALUE,
    },
)
TALK = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": WORDS}
    )
    | TURN,
    max_size=5,
)
RECORD = (
    st.fixed_dictionaries(
        {},
        optional={
            "id": SCALAR,
            "messages": TALK | VALUE,
            "conversations": TALK | VALUE,
            "text": WORDS | SCALAR,
            "system": WORDS | SCALAR,
            "tools": VALUE,
        },
    )
    | VALUE
)
RECORDS = st.lists(RECORD, min_size=1, max_size=4)


def text_is_used_or_refused(records, form, cut):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / ("talk.json" if form == "sharegpt" else "talk.jsonl")
        lines = (
            json.dumps(records)
            if form == "sharegpt"
            else "".join(json.dumps(one) + "\n" for one in records)
        )
        path.write_text(lines[: int(cut * len(lines))])
        encoder = Encoder(word_tokenizer(), [2], 40)
        try:
            items = list(read_sources([SourceSpec(path=str(path), format=form)]))
            texts = list(encoder.encode(items))
            said = ""
        except DataError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 1000
        if said:
            return
        tally = encoder.tally
        assert tally.read == len(items)
        assert tally.used <= len(texts)
        assert all(text.answers.any() and len(text.tokens) <= 40 for text in texts)
        assert tally.changed + tally.wordless <= tally.answers


FORMS = st.sampled_from(["auto", "messages", "sharegpt", "text"])
CUT = st.just(1.0) | st.floats(0, 1)


@BOUNDED
@given(RECORDS, FORMS, CUT)
def test_any_text_is_used_or_refused(records, form, cut):
    text_is_used_or_refused(records, form, cut)


@pytest.mark.fuzz
@LONG
@given(RECORDS, FORMS, CUT)
def test_any_text_is_used_or_refused_for_long(records, form, cut):
    text_is_used_or_refused(records, form, cut)


def test_refusing_takes_no_memory(project, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for override in ("batch=16384", "accumulate=16384", "evaluation.chain=600"):
        overrides = [override, f"output={tmp_path / 'out'}"]
        with pytest.raises((SpecError, DataError)):
            train(load_train_spec(project / "run.yaml", overrides))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_a_step_of_more_rows_than_the_text_has_is_refused(project, tmp_path):
    overrides = ["batch=400", f"output={tmp_path / 'out'}"]
    with pytest.raises(
        DataError, match=r"a step takes 400 rows, and the training text makes \d+ of"
    ):
        train(load_train_spec(project / "run.yaml", overrides))
