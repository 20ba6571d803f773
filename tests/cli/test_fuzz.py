"""Whatever a spec or an option is given, it is valid, or it is refused in a few short lines."""

import contextlib
import functools
import io

import pytest
import typer
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eagle.cli import app, console
from eagle.errors import EagleError
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import Role
from eagle.spec import load_spec, resolve
from eagle.spec.schema import DecoderSpec

STRANGE = [
    "", " ", "\0", "a\0b", "\udcff", "\ud800x", "x" * 300, "x" * 5000, "/" + "x" * 5000,
    "~nobody/x", "\u0663", "\u00b2", "cuda:\u0663", "cuda:\u00b2", "cuda:" + "9" * 30, "cuda:128",
    "1e400", ".nan", ".inf", "-1", "0", "9" * 400, "9" * 5000, "[", "{" * 300,
    "[" * 3000 + "]" * 3000,
    "a: b: c", "!!python/object:x", "&a [*a]", "\u2028", "\x1b[31m", "[red]", "true", "null", "~",
    "/dev/null", "/", ".", "..", "*", "%s", "{}", "--", "-", "=", "!",
]  # fmt: skip
OPTIONS = [
    "--spec", "--set", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--min-p",
    "--seed", "--stop", "--repeats", "--prompts", "--raw", "--json", "--compare", "--nonsense",
]  # fmt: skip


@functools.cache
def keys():
    """Return the key paths of specs: of all models, and of every strategy's settings."""
    found = [[]]
    for name, field in DecoderSpec.model_fields.items():
        found.append([name])
        inner = getattr(field.annotation, "model_fields", {})
        found += [[name, key] for key in inner]
    for role in Role:
        for entry in default_registry().strategies(role):
            found += [[role.value, key] for key in entry.strategy.config.model_fields]
    return found


strange = st.sampled_from(STRANGE) | st.text(max_size=20)
paths = st.deferred(lambda: st.sampled_from(keys())) | st.lists(strange, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | strange,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.deferred(
    lambda: st.sampled_from(
        [entry.name for role in Role for entry in default_registry().strategies(role)]
    )
)


def nested(settings_):
    """Return the mapping that sets key paths, of which later ones win."""
    data = {}
    for path, value in settings_:
        here = data
        for key in path[:-1]:
            if not isinstance(here.get(key), dict):
                here[key] = {}
            here = here[key]
        if path:
            here[path[-1]] = value
    return data


def check_spec(load):
    try:
        resolve(load(), default_registry())
    except EagleError as error:
        message = str(error)
        assert message.strip()
        assert message.count("\n") < 3
        assert len(message) <= 5000


def check_yaml(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    check_spec(lambda: load_spec(path))


def run(words):
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    console.out.file, console.err.file = streams
    try:
        with (
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            status = console.run(typer.main.get_command(app), words)
            for stream in streams:
                stream.flush()
    finally:
        console.out.file = console.err.file = None
    return status, streams[1].buffer.getvalue().decode()


def check_words(words):
    status, said = run(words)
    assert status in (0, 2), said
    assert said.count("\n") <= 5
    assert len(said) <= 5000


settings_of_specs = st.lists(st.tuples(paths, values | names), max_size=6)
words_of_specs = st.builds(
    lambda command, spec, pairs: [
        "spec",
        command,
        spec,
        *(word for key, value in pairs for word in ("--set", f"{'.'.join(key)}={value}")),
    ],
    st.sampled_from(["check", "show"]),
    st.sampled_from(["eagle", "plain", "chain"]) | strange,
    st.lists(st.tuples(paths, strange | names), max_size=3),
)
words_of_generate = st.builds(
    lambda prompt, pairs: [
        "generate", "--target", "./no/such/model", *(w for pair in pairs for w in pair), prompt
    ],
    strange.filter(lambda prompt: prompt != "-"),
    st.lists(st.tuples(st.sampled_from(OPTIONS), strange), max_size=3),
)  # fmt: skip


@settings(max_examples=50)
@given(data=settings_of_specs)
def test_any_spec_is_valid_or_refused(tmp_path_factory, data):
    check_yaml(tmp_path_factory, yaml.safe_dump(nested(data)))


@settings(max_examples=50)
@given(text=st.text(st.sampled_from("ab: \n-[]{}'\"#&*!|>%@\t1.,?~\u2028\0"), max_size=60))
def test_any_text_is_a_spec_or_refused(tmp_path_factory, text):
    check_yaml(tmp_path_factory, text)


@settings(max_examples=50)
@example(["spec", "check", "eagle", "--set", f"tree.{'a.' * 3000}b=1"])
@example(["spec", "check", "eagle", "--set", f"tree={'[' * 3000}{']' * 3000}"])
@example(["spec", "check", "\udcff.yaml"])
@example(["bench", "attention", "--device", ""])
@example(["bench", "attention", "--rows", "9" * 15])
@given(words=words_of_specs | words_of_generate)
def test_any_words_are_a_command_or_refused(words):
    check_words(words)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@settings(max_examples=5000, derandomize=False)
@given(data=settings_of_specs)
def test_very_many_specs_are_valid_or_refused(tmp_path_factory, data):
    check_yaml(tmp_path_factory, yaml.safe_dump(nested(data)))


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
@settings(max_examples=5000, derandomize=False)
@given(words=words_of_specs | words_of_generate)
def test_very_many_words_are_a_command_or_refused(words):
    check_words(words)
