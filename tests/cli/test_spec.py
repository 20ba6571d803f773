from __future__ import annotations

import json

import pytest
import yaml

from eagle.spec import load_spec, shipped_specs


def test_list_names_and_describes_every_shipped_spec(eagle):
    ran = eagle("spec", "list")
    assert (ran.status, ran.err) == (0, "")
    assert all(name in ran.out for name in shipped_specs())
    listed = json.loads(eagle("spec", "list", "--json").out)
    assert [entry["name"] for entry in listed] == list(shipped_specs())
    assert all(entry["description"] for entry in listed)


def test_show_prints_the_file_with_its_comments(eagle):
    ran = eagle("spec", "show", "chain")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == shipped_specs()["chain"].read_text()


def test_show_with_overrides_prints_a_complete_spec(eagle, tmp_path):
    ran = eagle("spec", "show", "chain", "--set", "tree.depth=5", "--set", "runtime.max_batch=2")
    assert ran.status == 0
    (tmp_path / "my.yaml").write_text(ran.out)
    assert load_spec(tmp_path / "my.yaml") == load_spec(
        "chain", ["tree.depth=5", "runtime.max_batch=2"]
    )


def test_show_prints_a_branching_without_the_tree_that_it_replaces(eagle):
    ran = eagle("spec", "show", "eagle", "--set", "tree.branching=[3, 2]")
    tree = yaml.safe_load(ran.out)["tree"]
    assert tree == {"name": "static", "sampling": "without-replacement", "branching": [3, 2]}


def test_show_does_not_print_a_spec_that_overrides_made_invalid(eagle):
    both = ("--set", "tree.branching=[3]", "--set", "tree.tree=reference-25")
    ran = eagle("spec", "show", "eagle", *both)
    assert (ran.status, ran.out) == (2, "")
    assert "give either 'tree'" in ran.err


@pytest.mark.parametrize("name", list(shipped_specs()))
def test_check_accepts_the_shipped_specs(eagle, name):
    ran = eagle("spec", "check", name)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{name}: valid\n")
    assert "lossless" in ran.out


@pytest.mark.parametrize(
    ("device", "described"),
    [
        ("cpu", "tree nodes: 6, drafted levels: 2, cycle free of host reads, on cpu"),
        ("cuda:99", "tree nodes: 26, drafted levels: 5, cycle free of host reads, for cuda:99, "),
    ],
)
def test_check_describes_the_tree_of_the_device(eagle, device, described):
    ran = eagle("spec", "check", "eagle", "--set", f"target.device={device}")
    assert (ran.status, ran.err) == (0, "")
    assert described in ran.out
    assert ("not here" in ran.out) == (device != "cpu")


def test_check_says_what_a_spec_gives_up(eagle):
    ran = eagle("spec", "check", "chain", "--set", "acceptance=typical")
    assert ran.status == 0
    assert "changes the output distribution" in ran.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tree: [1", "my.yaml:1: not YAML: expected ',' or ']'"),
        ("", "my.yaml: must be a mapping of keys to values, but the file is empty"),
        ("tre: chain", "my.yaml:1: tre: unknown key. Did you mean 'tree'?"),
        ("tree: chian", "my.yaml:1: tree: no tree builder is named 'chian'. Did you mean 'chain'?"),
        (
            "tree:\n  name: chain\n  depht: 3",
            "my.yaml:3: tree.depht: unknown key. Did you mean 'depth'?",
        ),
        (
            "tree: {name: chain, depth: deep}",
            'my.yaml:1: tree.depth: should be a valid integer, not "deep".',
        ),
        ("tree: {name: chain, depth: 0}", "my.yaml:1: tree.depth: should be greater than"),
        ("tree: {name: static, branching: []}", "my.yaml:1: tree"),
        ("head: none\ntree: chain", "my.yaml:2: tree: tree builder 'chain' (eagle-decoding"),
    ],
)
def test_check_refuses_bad_files_with_one_sentence(eagle, tmp_path, text, message):
    (tmp_path / "my.yaml").write_text(text)
    ran = eagle("spec", "check", str(tmp_path / "my.yaml"))
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {tmp_path}/{message}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("tree", "error: --set tree: must look like path.to.key=value"),
        ("tre.depth=3", "error: --set tre.depth=3: tre: unknown key. Did you mean 'tree'?"),
        ("tree.depth=-1", "error: --set tree.depth=-1: tree.depth: should be greater than"),
        ("tree=statc", "error: --set tree=statc: tree: no tree builder is named 'statc'."),
    ],
)
def test_check_refuses_bad_overrides(eagle, assignment, message):
    ran = eagle("spec", "check", "chain", "--set", assignment)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith(message)


@pytest.mark.parametrize(
    ("config", "said"),
    [("[1]", "its config.json holds [1]"), ('{"model_type": "lama"}', "Did you mean 'llama'?")],
)
def test_check_refuses_a_target_that_is_here_and_is_none(eagle, tmp_path, config, said):
    (tmp_path / "config.json").write_text(config)
    ran = eagle("spec", "check", "chain", "--set", f"target.model={tmp_path}")
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_unknown_spec_suggests_the_nearest(eagle, command):
    ran = eagle("spec", command, "chian")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("error: no spec is named 'chian', and there is no such file. Did")


def test_schema_is_json_with_the_installed_strategies(eagle):
    ran = eagle("spec", "schema")
    assert (ran.status, ran.err) == (0, "")
    named = json.loads(ran.out)["properties"]["tree"]["oneOf"][0]
    assert {"static", "chain"} <= set(named["enum"])
