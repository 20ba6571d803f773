"""``eagle bench`` as a user meets it: tables, files, pictures, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from eagle.bench.shapes import SHAPES, Shape
from eagle.plugin.budget import Costs, Curve, RankRates

SPECS = {
    "tree": "head: eagle\ntree: {name: static, branching: [3, 2]}\n",
    "chained": "head: eagle\ntree: {name: chain, depth: 2}\n",
}


@pytest.fixture
def bench(eagle, folders, tmp_path, monkeypatch):
    """Run ``eagle bench speed`` on the tiny pair, two specs and three prompts."""
    monkeypatch.setattr("eagle.bench.floors._BUFFER", {"cpu": 4 << 20})
    monkeypatch.setitem(SHAPES, "tiny-wide", Shape("tiny-wide", 96, 3, 6, 3, 32, 160))
    for name, text in SPECS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w5 w6 w7\nw10 w12 w14 w16\nw40 w43\n")
    given = ("--target", str(folders.target), "--set", f"head.weights={folders.head}")
    given = (*given, "--set", "target.dtype=float32")
    run = ("--prompts", str(prompts), "--max-new-tokens", "12")

    def call(*arguments, command="speed", specs=("tree", "chained")):
        files = [str(tmp_path / f"{name}.yaml") for name in specs]
        return eagle(
            "bench", command, *files, *given, *(run if command == "speed" else ()), *arguments
        )

    return call


def test_speed_prints_tables(bench):
    ran = bench("--baseline", "plain", "--baseline", "hf", "--limit", "2")
    assert (ran.status, ran.err) == (0, ""), "progress is for terminals"
    assert "float32" in ran.out
    assert "2 prompts of prompts.txt, 12 new tokens, temperature 0, batch 1" in ran.out
    for word in ("tokens/s", "tau", "over hf", "same as", "verify", "share", "read bandwidth"):
        assert word in ran.out
    rows = [line.split()[0] for line in ran.out.splitlines() if line.strip()]
    assert rows.count("tree") == rows.count("chained") == 3
    assert rows.count("hf") == 2, "it has no cycles"
    assert ran.out.count("2 of 2") == 2 + 2 + 1 + 1


def test_a_widened_run_says_so_everywhere(bench, tmp_path):
    files = {name: tmp_path / f"out.{name}" for name in ("json", "md")}
    ran = bench(
        "--shape", "tiny-wide", "--json", str(files["json"]), "--markdown", str(files["md"]),
        "--plots", str(tmp_path / "plots"),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    label = "'s function at the tiny-wide shape, float32"
    assert label in ran.out
    assert label in files["md"].read_text()
    shown = json.loads(files["json"].read_text())
    assert shown["label"].endswith("'s function at the tiny-wide shape")
    assert "eagle bench speed" in shown["command"]
    assert "--shape tiny-wide" in shown["command"]
    assert "/cpuinfo" not in shown["hardware"]
    assert set(shown["versions"]) >= {"python", "torch", "transformers", "eagle-decoding"}
    assert (shown["sizes"]["hidden_size"], shown["sizes"]["layers"]) == (96, 3)
    tree, chained, plain = shown["rows"]
    assert (tree["name"], chained["name"], plain["name"]) == ("tree", "chained", "plain")
    assert tree["identical"] == chained["identical"] == {"plain": 3}
    assert tree["tau"] > 1.5
    assert tree["spec"]["tree"] == {"name": "static", "branching": [3, 2]}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"speedup.png", "cycle.png"}


def test_a_tree_that_fits_is_fitted_to_the_wide_shape(bench, folders, tmp_path, monkeypatch):
    rates = RankRates(levels=((0.7, 0.2), (0.5, 0.2)), positions=9, source="made up")
    costs = Costs(
        verify=Curve.of([(1, 10.0), (9, 11.0)]), begin=1.0, level=Curve.of([(1, 1.0)]), rest=0.5,
        context=8,
    )  # fmt: skip
    measured = []

    def measure(resolved, target, tell):
        measured.append(target.info.hidden_size)
        return costs

    monkeypatch.setattr("eagle.sizing.choosing.measure_costs", measure)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(folders.head, tmp_path / "head")
    rates.write(tmp_path / "head")
    (tmp_path / "fitted.yaml").write_text("tree: {name: static, size: auto}\n")
    ran = bench(
        "--shape", "tiny-wide", "--limit", "1", "--set", f"head.weights={tmp_path / 'head'}",
        specs=("fitted",),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert measured == [96]
    assert "chosen: " in ran.err


def test_a_lossy_spec_is_called_one(bench):
    ran = bench("--set", "acceptance=typical", "--limit", "1", specs=("tree",))
    assert ran.status == 0
    assert "not lossless: the acceptance rule 'typical'" in ran.err
    assert ran.out.count("tree (not lossless)") == 3


def test_sampling_is_timed_without_a_claim_of_identity(bench):
    ran = bench("--temperature", "1", "--limit", "1", specs=("tree",))
    assert ran.status == 0
    assert "temperature 1" in ran.out
    assert "same as" not in ran.out


def test_passes_prints_a_row_for_each_number_of_nodes(bench, tmp_path):
    file = tmp_path / "passes.json"
    ran = bench(
        "--nodes", "1,5", "--context", "30", "--repeats", "2", "--json", str(file),
        command="passes", specs=("tree",),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "30 tokens of context" in ran.out
    shown = json.loads(file.read_text())
    assert [each["nodes"] for each in shown["passes"]] == [1, 5]
    assert "--context 30" in shown["command"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--shape", "tiny-wde"), "Did you mean 'tiny-wide'"),
        (("--baseline", "plian"), "Did you mean 'plain'"),
        (("--batch", "2", "--baseline", "hf-assisted-ngram"), "one prompt at a time"),
        (("--prompts", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--json", "no-such-folder/a.json"), "cannot be written"),
        (("--json", "same", "--markdown", "./same"), "same is to be written twice; give two files"),
        (("--plots", "/dev/null/x"), "x/cycle.png cannot be written, since its folder"),
        (("--temperature", "-1"), "--temperature"),
        (("--shape", "tiny-huge"), "its weights take"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_measured(
    bench, monkeypatch, arguments, problem
):
    huge = Shape("tiny-huge", 4096, 2, 32, 32, 128, 10**9)
    monkeypatch.setitem(SHAPES, "tiny-huge", huge)
    monkeypatch.setattr("eagle.bench.measure_speed", None)
    ran = bench(*arguments)
    assert ran.status == 2
    assert problem in ran.err
    assert ran.out == ""


def test_a_file_without_prompts_is_refused(bench, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    ran = bench("--prompts", str(tmp_path / "empty.txt"))
    assert (ran.status, "holds no prompt" in ran.err) == (2, True)


def test_pictures_without_matplotlib_are_refused_before_the_run(bench, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = bench("--plots", str(tmp_path / "plots"))
    assert ran.status == 2
    assert "pip install 'eagle-decoding[plots]'" in ran.err


def test_products_prints_a_row_for_each_number_of_rows(bench, tmp_path):
    file = tmp_path / "products.json"
    ran = bench(
        "--rows", "1,5", "--repeats", "2", "--json", str(file), command="products", specs=("tree",)
    )
    assert ran.status == 0, ran.err
    assert "q, k, v" in ran.out
    shown = json.loads(file.read_text())
    assert [each["rows"] for each in shown["times"]] == [1, 5] * 6
    assert [each["product"]["drafts"] for each in shown["times"]] == [False] * 10 + [True] * 2
    assert shown["bandwidth"] > 0
    assert "experts" not in shown


def test_products_of_a_mixture_say_how_fast_its_experts_are_read(bench, monkeypatch, tmp_path):
    small = Shape("tiny-mixture", 128, 2, 8, 2, 16, 128, experts=8, experts_per_token=2)
    monkeypatch.setitem(SHAPES, "tiny-mixture", small)
    monkeypatch.setattr("eagle.bench.experts._WEIGHTS", 1)
    file = tmp_path / "products.json"
    ran = bench(
        "--rows", "1,8,26,60", "--repeats", "2", "--shape", "tiny-mixture", "--json", str(file),
        command="products", specs=("tree",),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    assert "2 of 8 experts, 128 x 128, by transformers" in ran.out
    shown = json.loads(file.read_text())["experts"]
    assert shown["mixture"] == {"experts": 8, "top": 2, "hidden": 128, "inner": 128}
    assert [each["rows"] for each in shown["times"]] == [1, 8, 26, 60]
    assert shown["times"][0]["read"] == 2


@pytest.mark.parametrize(("command", "option"), [("passes", "--nodes"), ("products", "--rows")])
@pytest.mark.parametrize(("value", "problem"), [("1,x", "numbers like"), ("0", "at least 1")])
def test_lists_of_numbers_are_checked(bench, command, option, value, problem):
    ran = bench(option, value, command=command, specs=("tree",))
    assert (ran.status, problem in ran.err, option in ran.err) == (2, True, True)


def test_a_spec_that_is_a_baseline_is_refused_before_it_is_loaded(bench, tmp_path, monkeypatch):
    (tmp_path / "plain.yaml").write_text("head: none\ntree: none\n")
    monkeypatch.setattr("eagle.bench.prepare", None)
    for more in ((), ("--baseline", "plain"), ("--baseline", "hf", "--baseline", "plain")):
        ran = bench(*more, specs=("plain",))
        assert ran.status == 2
        assert "the spec 'plain' is measured as a baseline already" in " ".join(ran.err.split())


def test_throughput_prints_tables_and_writes_all_three_files(bench, eagle, tmp_path):
    pytest.importorskip("matplotlib")
    prompts = ("--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "6")
    out = tmp_path / "new" / "figures"
    ran = bench(
        *prompts, "--batch", "1,2", "--rate", "50", "--rounds", "1", "--out", str(out),
        command="throughput", specs=("tree",),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    for word in ("tree, batch 2", "plain, 50/s", "over plain", "first token", "3 of 3"):
        assert word in ran.out
    assert {path.name for path in out.iterdir()} == {
        "throughput.json", "throughput.md", "throughput.png",
    }  # fmt: skip
    assert "eagle bench throughput" in (out / "throughput.md").read_text()
    shown = json.loads((out / "throughput.json").read_text())
    assert [(load["slots"], load["rate"]) for load in shown["loads"]] == [
        (1, None), (2, None), (2, 50.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--batch", "4"), "a batch of 4 needs as many prompts; there are 3"),
        (("--rate", "0"), "nothing ever comes at a rate of 0"),
        (("--rate", "fast"), "--rate: should be numbers like 0.5,1,2"),
        (("--batch", "0"), "at least 1"),
        (("--out", "prompts.txt"), "--out"),
    ],
)
def test_a_load_that_cannot_be_is_refused(bench, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    ran = bench("--prompts", "prompts.txt", *arguments, command="throughput", specs=("tree",))
    assert (ran.status, ran.out) == (2, "")
    assert problem in ran.err


def test_a_leaderboard_is_written_and_goes_on_where_it_was(bench, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = tmp_path / "board.md"
    given = (
        "typical", "nobody", "--prompts", f"chat={tmp_path / 'prompts.txt'}", "--limit", "2",
        "--max-new-tokens", "4", "--batch", "1,2", "--temperature", "0", "--out", str(page),
    )  # fmt: skip
    ran = bench(*given, "--fresh", command="leaderboard", specs=("tree",))
    assert ran.status == 0, ran.err
    assert "nobody: no spec is named 'nobody'" in ran.err
    text = page.read_text()
    for word in ("| tree |", "| typical (not lossless) |", "| nobody |", "2 of 2", "board-1.png"):
        assert word in text
    command = next(line for line in text.splitlines() if line.startswith("    eagle bench"))
    assert command.endswith(f" --fresh --out {page}"), "as it could be given again"
    assert (tmp_path / "board-1.png").stat().st_size > 10_000
    monkeypatch.setattr("eagle.bench.serving.Server.serve", None)
    assert bench(*given, command="leaderboard", specs=("tree",)).status == 0, "nothing is left"


def test_a_leaderboard_says_what_is_wrong_before_anything_is_loaded(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("eagle.bench.prepare", None)
    for arguments, problem in (
        (("--prompts", "prompts.txt"), "must look like DOMAIN=FILE"),
        (("--prompts", "chat=nowhere.txt"), "nowhere.txt cannot be read"),
        (("--temperature", "-1"), "at least 0"),
        (("--out", "no-such-folder/a.md"), "cannot be written"),
        (("--out", "page.json"), "page.json is to be written twice"),
        (
            ("--limit", "2", "--batch", "1,3"),
            "--batch 3: so many requests are never decoded at once",
        ),
        ((), "nobody can run: stranger: no spec is named 'stranger'"),
    ):
        ran = bench("stranger", *arguments, command="leaderboard", specs=())
        assert (ran.status, ran.out) == (2, "")
        assert problem in " ".join(ran.err.split())
