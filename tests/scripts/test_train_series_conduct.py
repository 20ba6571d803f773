"""What fails is named, what there is no time for is not begun, and bad input is one sentence."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from eagle.spec import read_value
from train_series import conduct
from train_series.main import main
from train_series.plan import load_plan, read_yaml
from train_series.results import Found, Results, merged

EAGLE = """
import json, os, pathlib, sys, time
words = sys.argv[1:]
if words[0] != "-m":
    runs = json.loads(words[1])["runs"]
    if any(run["config"] == "wrong" for run in runs.values()):
        print(json.dumps({"error": "a: no training spec is named 'wrong'"}))
        sys.exit()
    told = {name: {"tokens_per_step": 4, "steps": 5, "head": "eagle"} for name in runs}
    print(json.dumps({"hardware": "H", "versions": {"torch": "2"}, "runs": told}))
    sys.exit()
given = dict(word.split("=", 1) for word in words if "=" in word)
if words[2] == "data":
    pathlib.Path(words[words.index("--out") + 1]).write_text("text")
    time.sleep(60)
if words[2] == "train":
    if words[3] == "broken":
        sys.exit("error: out of memory")
    folder = pathlib.Path(json.loads(given["output"]))
    (folder / "head").mkdir(parents=True, exist_ok=True)
    (folder / "head" / "config.json").write_text("{}")
    line = {"kind": "train", "step": 3, "loss": 1.0, "accuracy_by_level": [0.5],
            "tokens_per_second": 8.0}
    (folder / "log.jsonl").write_text(json.dumps(line) + "\\n")
    if words[3] == "slow":
        time.sleep(60)
    print(json.dumps({"finished": True, "tau": {"t": {"held-out": 1.5}},
                      "n_alpha": {"held-out": [0.5, float("nan")]}}))
else:
    pathlib.Path(words[words.index("--answers") + 1]).write_text("{}")
    print(json.dumps({"levels": [[0.6, 0.1]], "positions": 9,
                      "simulation": {"tau": {"t": {"words": 2.0}}}}))
"""


@pytest.fixture
def python(tmp_path):
    """A Python that trains and measures in no time, or as its config is called."""
    (tmp_path / "eagle.py").write_text(EAGLE)
    return [sys.executable, "-S", "-E", str(tmp_path / "eagle.py")]


@pytest.fixture
def write(tmp_path):
    """Write a plan of runs ``name=config``, and return its path."""
    (tmp_path / "words.txt").write_text("w5 w6\n")

    def make(*runs, **changes):
        plan = {
            "about": "a test",
            "minutes": 5,
            "at_once": 2,
            "runs": [{"name": n, "config": c, "steps": 5, "variant": n} for n, c in runs],
            "evaluation": {"trees": [{"name": "t"}], "prompts": {"words": "words.txt"}},
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(plan | changes))
        return path

    return make


@pytest.fixture
def run(tmp_path, python, capsys):
    """Run a plan, and return its exit status, its results, and what was said on stderr."""

    def go(plan, *more):
        work = tmp_path / "work"
        status = main(["run", str(plan), "--work", str(work), "--device", "cpu", *more], python)
        file = work / "results.json"
        return status, Results.read(file) if file.exists() else None, capsys.readouterr().err

    return go


def test_a_run_that_fails_is_named_and_the_others_go_on(write, run):
    plan = write(("a", "broken"), ("b", "good"), beside={"shipped": {"head.name": "eagle"}})
    status, found, _ = run(plan)
    assert status == 1
    assert (found.runs["a"].state, found.runs["a"].why) == ("failed", "error: out of memory")
    assert found.runs["b"].finished
    assert found.runs["b"].tokens == 12
    assert found.runs["b"].n_alpha == [0.5, None]
    assert found.others["shipped"].mean_tau() == 2.0
    assert list(found.runs) == ["a", "b"]  # as in the plan


def test_a_run_whose_time_is_up_is_stopped_and_what_does_not_fit_is_not_begun(
    write, run, monkeypatch
):
    monkeypatch.setattr(conduct, "_SAVING", 0.2)
    monkeypatch.setattr(conduct, "_START", 0.0)
    plan = write(
        ("a", "slow"), ("b", "good"), at_once=1, beside={"shipped": {"head.name": "eagle"}}
    )
    status, found, _ = run(plan, "--minutes", "0.05")
    assert status == 1
    assert (found.runs["a"].state, found.runs["a"].steps) == ("stopped", 3)
    assert found.runs["a"].why == "its time was up at step 3 of 5"
    assert found.runs["b"].why == "too little time was left"


def test_a_long_run_is_not_begun_where_a_short_one_fits(write, run):
    runs = [
        {"name": "long", "config": "good", "seconds": 600, "variant": "long"},
        {"name": "short", "config": "good", "tokens": 600, "rate": 10.0, "variant": "short"},
    ]
    status, found, _ = run(write(runs=runs))
    assert status == 1
    assert (found.runs["long"].state, found.runs["short"].state) == ("not begun", "finished")
    assert found.runs["short"].overrides["steps"] == 5


def test_a_text_that_may_take_so_long_is_used_as_it_is_then(write, run, tmp_path):
    texts = {"some": {"file": "some.npz", "command": "data prepare x --out $some", "seconds": 0.5}}
    runs = [{"name": "a", "config": "good", "text": "some", "steps": 5, "variant": "a"}]
    status, found, _ = run(write(texts=texts, runs=runs))
    assert status == 0
    assert found.runs["a"].finished
    given = tmp_path / "given.npz"
    status, _, said = run(write(texts=texts, runs=runs), "--text", f"some={given}")
    assert status == 2
    assert f"--text some: there is no file {given}" in said
    given.write_text("text")
    elsewhere = ("--work", str(tmp_path / "elsewhere"), "--text", f"some={given}")
    assert run(write(texts=texts, runs=runs), *elsewhere)[0] == 0
    assert not (tmp_path / "elsewhere" / "some.npz").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "runs: Tuple should have at least 1 item"),
        ({"runs": [{"name": "a", "config": "x"}]}, "one of tokens, steps and seconds"),
        (
            {"runs": [{"name": "a", "config": "x", "steps": 1, "sets": {}}]},
            "runs.0.sets: there is no such key",
        ),
        (
            {"runs": [{"name": "a", "config": "x", "steps": 1}] * 2},
            "two of its runs, heads and texts are called 'a'",
        ),
        (
            {"runs": [{"name": "a", "config": "x", "steps": 1, "text": "b"}]},
            "a: there is no text 'b'; there is none",
        ),
        ({"texts": {"b": {"file": "b", "command": "$c"}}}, "texts.b.command: 'c'"),
        ({"runs": [{"name": "a", "config": "wrong", "steps": 1}]}, "a: no training spec is named"),
        ({"set": {"seed": {1}}}, "plan.yaml: has a value that no setting can have"),
        ({"about": "\ud800"}, "plan.yaml: has half of a surrogate pair"),
        ({"evaluation": {"trees": [{}], "prompts": {"a": "plan.bin"}}}, "plan.bin:2: the byte 3"),
        ({"runs": [{"name": "a", "config": "plan.bin.yaml", "steps": 1}]}, "bin.yaml:2: the byte"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_sentence(write, run, tmp_path, changes, message):
    for name in ("plan.bin", "plan.bin.yaml"):
        (tmp_path / name).write_bytes(b"a:\n\xff")
    status, _, said = run(write(("a", "good"), **changes))
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", "all=x"], "--text: the plan has no text 'all'; it has none"),
        (["--prompts", "x"], "--prompts x: should be NAME=VALUE"),
        (["--prompts", "x=nowhere.txt"], "nowhere.txt"),
        (["--at-once", "0"], "--at-once should be above 0"),
        (["--minutes", "1e-9"], "there was too little time to read the plan through"),
        (["--from", "nowhere.json"], "nowhere.json: No such file"),
        (["--set", "a=["], "--set a:1: not YAML: expected the node content"),
        (["--set", "a=!!timestamp 2024-01-01"], "--set a: has a value that no setting can have"),
        (["--set", 'a="\\ud800"'], "--set a: has half of a surrogate pair"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(write, run, words, message):
    status, _, said = run(write(("a", "good")), *words)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_plan_that_is_none_and_a_name_that_is_unknown_are_refused(tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text("runs: [")
    assert main(["run", str(tmp_path / "plan.yaml")]) == 2
    assert "plan.yaml:1: not YAML" in capsys.readouterr().err
    assert main(["run", "ablation"]) == 2
    assert "there is no plan 'ablation'; there is ablations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("minutes: 7", "plan.yaml:14: not YAML: the key 'minutes' is given twice"),
        ("set: {seed: 1, seed: 2}", "plan.yaml:14: not YAML: the key 'seed' is given twice"),
        ("set: " + "[" * 3000, "plan.yaml: is nested too deeply"),
        ("set: {seed: " + "9" * 5000 + "}", "plan.yaml: has a value that no setting can have"),
        ("\n# \udcff", "plan.yaml:15: the byte"),
    ],
)
def test_a_plan_that_is_no_plain_yaml_is_refused_in_one_sentence(write, run, more, message):
    plan = write(("a", "good"))
    plan.write_bytes(plan.read_bytes() + more.encode(errors="surrogateescape"))
    status, _, said = run(plan)
    assert status == 2
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("said", ["3e-4", "-3E4", ".5e1", "1.5", "0", "12", "1e", "e1"])
def test_a_number_in_a_plan_is_what_it_is_in_a_spec(said):
    ours, theirs = read_yaml(said, "a plan"), read_value(said)
    assert (ours, type(ours)) == (theirs, type(theirs))


def test_a_date_in_a_plan_is_text(write, run):
    status, found, _ = run(write(("a", "good")), "--set", "a=2024-01-01")
    assert status == 0
    assert found.runs["a"].overrides["a"] == "2024-01-01"


@pytest.fixture
def begun(write, python, tmp_path):
    """Begin a series that takes long, in a process of its own, and return that."""
    program = "import json, sys; sys.path.insert(0, sys.argv[1]); from train_series import main\n"
    program += "sys.exit(main.main(json.loads(sys.argv[2]), json.loads(sys.argv[3])))"
    words = ["run", str(write(("a", "slow"))), "--device", "cpu"]
    words += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    scripts = str(Path(conduct.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", program, scripts, json.dumps(words), json.dumps(python)]
    )
    until = time.monotonic() + 60
    while not (tmp_path / "work" / "a" / "log.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("folders", "option"),
    [(["--work", "work"], "--work"), (["--work", "new", "--out", "out"], "--out")],
)
def test_a_second_series_in_a_folder_is_refused_until_the_first_is_gone(
    begun, write, python, tmp_path, capsys, folders, option
):
    there = [word if word.startswith("--") else str(tmp_path / word) for word in folders]
    words = ["run", str(write(("a", "good"))), "--device", "cpu", *there]
    assert main(words, python) == 2
    said = capsys.readouterr().err
    assert f"another train-series is at work in {there[-1]}" in said
    assert said.endswith(f"or give another {option}\n")
    assert said.count("\n") == 1
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    asked = [tmp_path / "work" / "results.json", tmp_path / "out" / "results.json"]
    for file in asked:  # of the same run by another config, which is not gone on with
        file.unlink()
    assert main(words, python) == 0


def test_a_note_that_was_cut_off_when_the_machine_went_down_is_made_again(write, run, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.trained.json").write_text('{"fini')
    status, found, _ = run(write(("a", "good")))
    assert status == 0
    assert found.runs["a"].finished


def test_results_of_other_settings_are_not_gone_on_with(write, run, tmp_path):
    assert run(write(("a", "good")))[0] == 0
    status, _, said = run(write(("a", "good")), "--set", "seed=1")
    assert status == 2
    assert "another run called 'a'" in said
    status, _, said = run(write(("a", "good")), "--limit", "3")
    assert status == 2
    assert "other prompts or trees than this plan's; give another --work" in said
    elsewhere = ("--work", str(tmp_path / "new"), "--from", str(tmp_path / "work" / "results.json"))
    status, _, said = run(write(("a", "good")), *elsewhere, "--limit", "3")
    assert status == 2
    assert "other prompts or trees than this plan's; leave out --from" in said


def found(name, tau, **changes):
    whole = Found(state="finished", variant=name, tau={"t": {"words": tau}}, right=[0.5, 0.4])
    return replace(whole, **changes)


def test_a_report_of_several_files_has_the_later_figures(tmp_path, capsys):
    one = Results("a test", "m", "asked", {"a": found("a", 2.0), "b": Found(why="no time")})
    two = Results("a test", "m", "asked", {"a": found("a", 3.0), "b": found("b", 2.5)})
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    one.write(files[0])
    two.write(files[1])
    assert merged(files).runs == two.runs
    assert merged(files[::-1]).runs["b"] == two.runs["b"]
    assert main(["report", str(files[0]), "--out", str(tmp_path / "page")]) == 0
    assert "- b: not begun, no time" in (tmp_path / "page.md").read_text()
    replace(two, measured="n").write(files[1])
    assert main(["report", *map(str, files), "--out", str(tmp_path / "page")]) == 2
    assert "different prompts or trees" in capsys.readouterr().err
    files[0].write_text("{}")
    assert main(["report", str(files[0])]) == 2
    assert "holds no results of a series" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ablations", "answers", "drafters", "scaling"])
def test_the_plans_that_ship_ask_the_same_and_fit_into_their_time(name):
    plans = conduct.Path(conduct.__file__).with_name("plans")
    plan = load_plan(plans / f"{name}.yaml")
    assert plan.measured == load_plan(plans / "ablations.yaml").measured
    by_clock = [run.seconds for run in plan.runs if run.seconds]
    alone = sum(run.reckoned for run in plan.runs if not run.seconds)
    texts = sum(text.seconds or 0 for text in plan.texts.values())
    around = conduct._START + conduct._SAVING
    assert texts + alone + max(by_clock, default=0) + around < 60 * plan.minutes
    assert all(run.reckoned for run in plan.runs)


@pytest.mark.parametrize(
    "change",
    [
        {"tau": {}},
        {"tau": {"t": {}}},
        {"tau": {"t": 3}},
        {"tau": {"t": {"words": "x"}}},
        {"tau": {"t": {"words": float("nan")}}},
        {"right": [None]},
        {"tokens": "x"},
        {"tokens_per_second": [1.0]},
        {"hardware": None},
        {"variant": "\ud800"},
    ],
)
def test_a_report_of_what_no_series_wrote_is_refused_in_one_sentence(tmp_path, capsys, change):
    one = Results("a test", "m", "asked", {"a": replace(found("a", 2.0), **change)})
    one.write(tmp_path / "one.json")
    assert main(["report", str(tmp_path / "one.json"), "--out", str(tmp_path / "page")]) == 2
    said = capsys.readouterr().err
    assert "one.json holds no results of a series of trainings: " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "page.md").exists()


def test_a_report_of_heads_that_were_measured_otherwise_is_refused(tmp_path, capsys):
    one = Results("a test", "m", "asked", {"a": found("a", 2.0)})
    other = replace(found("b", 2.0), tau={"u": {"words": 2.0}})
    two = Results("a test", "m", "asked", {"b": other})
    one.write(tmp_path / "one.json")
    two.write(tmp_path / "two.json")
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json")]
    assert main(["report", *files, "--out", str(tmp_path / "page")]) == 2
    assert "b and a are of different trees or kinds of text" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[" * 100_000, "\0", "[]", '{"runs": []}'])
def test_a_report_of_an_empty_or_broken_file_is_refused_in_one_sentence(tmp_path, capsys, text):
    (tmp_path / "one.json").write_text(text)
    assert main(["report", str(tmp_path / "one.json"), "--out", str(tmp_path / "page")]) == 2
    said = capsys.readouterr().err
    assert "holds no results of a series of trainings" in said
    assert said.count("\n") == 1
