from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.errors import (
    CheckpointError,
    IncompatibleError,
    PluginError,
    SpecError,
    UnknownStrategyError,
)
from eagle.plugin.registry import Registry, default_registry
from eagle.plugin.roles import BuildContext, Law, Role, TargetInfo
from eagle.plugin.strategy import ROLES
from eagle.spec import (
    ComponentSpec,
    DecoderSpec,
    json_schema,
    load_spec,
    resolve,
    shipped_specs,
)
from tests import fakes
from tests.fakes import Component, Depth, Size, strategy

TARGET = TargetInfo(name="tiny", hidden_size=64, vocab_size=100, layers=2, max_positions=128)


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def refused(error: type[SpecError], registry: Registry, target: object = None, **keys) -> str:
    with pytest.raises(error) as caught:
        resolve(DecoderSpec(**keys), registry, BuildContext(target=target))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ---------------------------------------------------------------------------------


def test_an_empty_spec_means_the_defaults():
    spec = DecoderSpec()
    names = [spec.component(role).name for role in ROLES]
    assert names == ["last-hidden", "eagle", "static", "auto", "speculative"]
    assert (spec.target.model, spec.runtime.max_batch) == ("smollm2-135m-instruct", 8)


def test_components_are_a_name_or_a_mapping_with_settings(tmp_path):
    spec = load_spec(write(tmp_path, "tree: {name: chain, depth: 3}\nhead: none\n"))
    assert spec.tree == ComponentSpec(name="chain", depth=3)
    assert spec.head == ComponentSpec(name="none")
    assert spec == DecoderSpec(name="my", tree={"name": "chain", "depth": 3}, head="none")


def test_a_spec_can_be_written_and_read_back(tmp_path):
    spec = load_spec("eagle", ["tree.branching=[4, 2]", "runtime.max_length=512"])
    path = write(tmp_path, json.dumps(spec.model_dump(mode="json")))
    assert load_spec(path) == spec


def test_the_name_defaults_to_the_files(tmp_path):
    assert load_spec(write(tmp_path, "head: none")).name == "my"
    assert load_spec(write(tmp_path, "name: mine")).name == "mine"
    assert load_spec("chain").name == "chain"


def test_relative_paths_start_at_the_file(tmp_path):
    assert load_spec(write(tmp_path, "head: none")).folder == tmp_path
    assert load_spec("chain").folder == Path()


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_shipped_specs_are_valid_and_described(name):
    spec = load_spec(name)
    assert spec.name == name
    assert spec.description
    resolved = resolve(spec, default_registry())
    assert resolved.lossless


def test_the_promised_specs_ship():
    assert {"eagle", "eagle-dynamic", "eagle-reference", "chain", "plain"} <= set(shipped_specs())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tre: chain", "my.yaml:1: tre: unknown key. Did you mean 'tree'?"),
        ("target:\n  modle: x", "my.yaml:2: target.modle: unknown key. Did you mean 'model'?"),
        ("target: {model: ''}", "target.model: should not be empty"),
        ("target: {dtype: bf16}", "target.dtype: should be 'auto', 'float32', 'bfloat16' or"),
        ("target: {device: gpu}", "target.device: should be auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("target: {device: 'cuda:'}", "target.device: should be auto, cpu, cuda or cuda:N"),
        ("target: {device: 'cuda:128'}", "cuda or cuda:N of at most 127, not 'cuda:128'"),
        ("target: {device: 'cuda:007'}", "cuda or cuda:N of at most 127, not 'cuda:007'"),
        ("target: {device: 'cuda:\u0663'}", "cuda or cuda:N of at most 127, not 'cuda:\u0663'"),
        ("target: {device: 'cuda:\u00b2'}", "cuda or cuda:N of at most 127, not 'cuda:\u00b2'"),
        ("tree: 5", "tree: should be a strategy's name, or a mapping with `name`"),
        ("tree: {depth: 3}", "tree: should be a strategy's name, or a mapping with `name`"),
        ("tree: {name: 5}", "tree.name: should be a valid string, not 5."),
        ("tree: ''", "tree"),
        ("runtime: {max_batch: 0}", "runtime.max_batch: should be greater than or equal to 1"),
        ("runtime: {max_length: long}", "should be a valid integer or 'auto', not \"long\"."),
        ("runtime: {max_length: -1}", "runtime.max_length: should be greater than or equal to 1"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_name_that_is_no_spec_suggests_the_nearest():
    with pytest.raises(SpecError, match="Did you mean 'chain'") as caught:
        load_spec("chian")
    assert "Shipped: cascade, chain, eagle" in str(caught.value)
    with pytest.raises(SpecError, match=r"gone\.yaml: cannot be read"):
        load_spec("gone.yaml")


def test_a_folder_of_a_specs_name_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "eagle").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_spec("eagle").name == "eagle"


def test_overrides_keep_or_replace_a_strategy():
    assert load_spec("chain", ["tree.depth=5"]).tree.settings == {"depth": 5}
    assert load_spec("chain", ["tree=static"]).tree == ComponentSpec(name="static")
    assert load_spec("chain", ["attention.x=1"]).attention.settings == {"x": 1}
    with pytest.raises(SpecError, match=r"--set runtme.max_batch=2: runtme: unknown key"):
        load_spec("chain", ["runtme.max_batch=2"])


# --- resolving -------------------------------------------------------------------------------


def test_resolving_builds_every_role_and_loads_nothing():
    resolved = resolve(DecoderSpec(), fakes.registry(), BuildContext(target=TARGET))
    assert set(resolved.components) == set(ROLES)
    assert resolved.lossless
    assert resolved.capturable
    assert resolved.strategies[Role.TREE].name == "static"


def test_build_gets_settings_and_context():
    seen = []

    def build(settings, context):
        seen.append((settings, context))
        return Component()

    context = BuildContext(target=TARGET, folder=Path("here"))
    tree = {"name": "static", "depth": 4}
    resolve(
        DecoderSpec(tree=tree),
        fakes.registry(tree=[strategy("static", Depth, build=build)]),
        context,
    )
    assert seen == [(Depth(depth=4), context)]


def test_an_unknown_strategy_is_refused_with_place_and_nearest(tmp_path):
    spec = load_spec(write(tmp_path, "\ntree:\n  name: statc\n"))
    with pytest.raises(UnknownStrategyError) as caught:
        resolve(spec, fakes.registry())
    assert str(caught.value).startswith(f"{tmp_path}/my.yaml:3: tree: no tree builder is named")
    assert "Did you mean 'static'?" in str(caught.value)


def test_a_strategys_settings_are_checked_with_their_key_path(tmp_path):
    path = write(tmp_path, "tree:\n  name: chain\n  depht: 3\n")
    with pytest.raises(SpecError) as caught:
        resolve(load_spec(path), fakes.registry())
    assert str(caught.value) == (
        f"{path}:3: tree.depht: unknown key. Did you mean 'depth'? Known keys: depth, branching."
    )
    message = refused(SpecError, fakes.registry(), tree={"name": "chain", "depth": "x"})
    assert message == 'spec: tree.depth: should be a valid integer, not "x".'
    message = refused(SpecError, fakes.registry(), attention={"name": "sdpa", "x": 1})
    assert message == "spec: attention.x: unknown key. No key is known here."


def test_an_override_that_a_strategy_refuses_is_named():
    with pytest.raises(SpecError, match=r"--set tree.depth=0: tree.depth: should be greater"):
        resolve(load_spec("chain", ["tree.depth=0"]), fakes.registry())


def test_a_law_that_the_rule_cannot_keep_is_refused_with_what_would_be_right():
    iid = frozenset({Law.IID})
    registry = fakes.registry(
        tree=[strategy("lucky", laws=iid), strategy("static")],
        acceptance=[
            strategy("speculative"),
            strategy("for-iid", laws=iid),
            strategy("loose", laws=iid, lossless=False),
        ],
    )
    message = refused(IncompatibleError, registry, tree="lucky")
    assert message.startswith("spec: tree: tree builder 'lucky' (fake-strategies 1.0) draws")
    assert "siblings by iid" in message
    assert "acceptance rule 'speculative' (fake-strategies 1.0) keeps" in message
    assert "only under top-k" in message
    assert "(by default: static)" in message
    assert "a rule for iid (for-iid)" in message
    assert resolve(DecoderSpec(tree="lucky", acceptance="for-iid"), registry).lossless
    assert not resolve(DecoderSpec(tree="lucky", acceptance="loose"), registry).lossless


def test_a_lossy_rule_takes_any_law_and_is_declared_lossy():
    registry = fakes.registry(
        tree=[strategy("static", laws=frozenset({Law.IID}))],
        acceptance=[strategy("speculative", lossless=False)],
    )
    assert not resolve(DecoderSpec(), registry).lossless


def test_a_component_that_declares_what_is_no_law_is_a_plugin_error():
    lying = strategy("static", build=lambda *_: Component(laws=frozenset({"top_k"})))
    with pytest.raises(PluginError, match=r"declares the laws .*, which are no eagle.plugin.Law"):
        resolve(DecoderSpec(), fakes.registry(tree=[lying]))


def test_feature_sizes_must_agree_once_the_target_is_known():
    registry = fakes.registry(
        features=[strategy("last-hidden", Size, build=lambda s, c: Component(size=s.size))],
        head=[strategy("eagle", build=lambda s, c: Component(size=192)), strategy("none")],
    )
    message = refused(IncompatibleError, registry, TARGET)
    assert "feature extractor 'last-hidden' (fake-strategies 1.0) makes features of size 64" in (
        message
    )
    assert "draft head 'eagle' (fake-strategies 1.0) needs 192" in message
    fitting = DecoderSpec(features={"name": "last-hidden", "size": 192})
    assert resolve(fitting, registry, BuildContext(target=TARGET)).lossless
    assert resolve(DecoderSpec(), registry).lossless, "unknown target: nothing to compare"
    plain = DecoderSpec(head="none", tree="none")
    assert resolve(plain, registry, BuildContext(target=TARGET)).lossless


def test_a_head_that_does_not_fit_its_target_says_so_itself():
    class Unfit(Component):
        def feature_size(self, target):
            raise CheckpointError("model.safetensors is for hidden size 32")

    registry = fakes.registry(head=[strategy("eagle", build=lambda *_: Unfit())])
    with pytest.raises(CheckpointError, match="hidden size 32"):
        resolve(DecoderSpec(), registry, BuildContext(target=TARGET))


def test_no_head_goes_only_with_no_tree():
    message = refused(IncompatibleError, fakes.registry(), head="none")
    assert "'static' (fake-strategies 1.0) drafts 2 levels" in message
    assert "use `tree: none`" in message
    assert resolve(DecoderSpec(head="none", tree="none"), fakes.registry()).tree.shape.depth == 0
    assert resolve(DecoderSpec(tree="none"), fakes.registry()).tree.shape.depth == 0


@pytest.mark.parametrize("role", list(ROLES))
def test_one_component_that_cannot_be_captured_makes_the_decoder_eager(role):
    name = DecoderSpec().component(role).name
    registry = fakes.registry(**{role.value: [strategy(name, capturable=False)]})
    assert not resolve(DecoderSpec(), registry).capturable


def test_a_plugin_that_raises_while_building_is_named():
    def build(settings, context):
        raise ZeroDivisionError("division\nby zero")

    registry = fakes.registry(tree=[strategy("static", build=build)])
    with pytest.raises(PluginError) as caught:
        resolve(DecoderSpec(), registry)
    assert str(caught.value) == (
        "tree builder 'static' (fake-strategies 1.0), plug-in 'fake' of fake-strategies 1.0: "
        "build() raised ZeroDivisionError: division by zero"
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugins_own_spec_error_is_passed_on():
    def build(settings, context):
        raise SpecError("tree: two paths are the same")

    registry = fakes.registry(tree=[strategy("static", build=build)])
    assert refused(SpecError, registry) == "tree: two paths are the same"


def test_a_component_that_lacks_its_roles_methods_is_named():
    registry = fakes.registry(tree=[strategy("static", build=lambda *_: object())])
    with pytest.raises(PluginError, match="returned a object, which is no TreeBuilder: it lacks"):
        resolve(DecoderSpec(), registry)


def test_a_component_whose_declaration_raises_is_named():
    class Sulking(Component):
        @property
        def capturable(self):
            raise OSError("no")

        @capturable.setter
        def capturable(self, value):
            pass

    registry = fakes.registry(tree=[strategy("static", build=lambda *_: Sulking())])
    with pytest.raises(PluginError, match=r"'static'.*a property raised OSError: no"):
        resolve(DecoderSpec(), registry)


def test_an_exception_while_decoding_is_put_down_to_the_component_it_arose_in():
    class Failing(Component):
        def build(self, drafter, draws):
            return self._helper([])

        def _helper(self, empty):
            return empty[0]

    registry = fakes.registry(tree=[strategy("static", build=lambda *_: Failing())])
    resolved = resolve(DecoderSpec(), registry)
    with pytest.raises(IndexError) as caught:
        resolved.tree.build(None, None)
    blamed = resolved.blame(caught.value)
    assert "tree builder 'static' (fake-strategies 1.0), plug-in 'fake'" in str(blamed)
    assert "_helper() raised IndexError: list index out of range" in str(blamed)
    with pytest.raises(IndexError) as caught:
        _ = [][0]
    suspected = str(resolved.blame(caught.value))
    assert "the loop raised IndexError: list index out of range, perhaps by what" in suspected
    assert "tree builder 'static' (fake-strategies 1.0)" in suspected
    ours = resolve(DecoderSpec(), default_registry())
    assert ours.blame(caught.value) is None, "nobody but this package can be to blame"


# --- schema ----------------------------------------------------------------------------------


def test_the_schema_offers_every_strategy_with_its_settings():
    schema = json_schema(fakes.registry())
    named, *choices = schema["properties"]["tree"]["oneOf"]
    assert named["enum"] == ["chain", "none", "static"]
    chain = choices[0]
    assert chain["properties"]["name"] == {"const": "chain"}
    assert chain["properties"]["depth"]["minimum"] == 1
    assert chain["required"] == ["name"]
    assert chain["additionalProperties"] is False
    assert schema["additionalProperties"] is False
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_reference_in_the_schema_leads_somewhere():
    schema = json_schema(default_registry())
    text = json.dumps(schema)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert references
    assert references <= set(schema["$defs"])


def test_a_config_that_has_no_schema_costs_the_others_nothing():
    class Odd(Depth):
        thing: object = None

        @classmethod
        def model_json_schema(cls, *args, **kwargs):
            raise TypeError("no schema")

    schema = json_schema(fakes.registry(tree=[strategy("odd", Odd), strategy("chain", Depth)]))
    _, chain, odd = schema["properties"]["tree"]["oneOf"]
    assert "depth" in chain["properties"]
    assert odd["additionalProperties"] is True


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        (None, [], "not as NoneType"),
        ({"tree": "chain"}, [], "not as dict"),
        (b"eagle", [], "not as bytes"),
        ("x" * 5000, [], "names no spec and no file: File name too long"),
        ("a\0b", [], "names no spec and no file|no spec is named"),
        ("~nobody-is-called-so/x.yaml", [], "no spec|cannot be read"),
        ("eagle", "tree=chain", "overrides are a list of 'path.to.key=value', not str"),
        ("eagle", None, "not NoneType"),
        ("eagle", [3], "'path.to.key=value' each, not int"),
    ],
)
def test_refuses_what_names_no_spec_in_one_short_sentence(spec, overrides, message):
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(spec, overrides)
    assert len(str(caught.value)) < 300
