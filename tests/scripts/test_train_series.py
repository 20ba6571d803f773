"""A plan is carried out, killed anywhere and gone on with, and what comes of it is reported."""

import json
import os
import signal
import sys
import tarfile
import time
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from tests.scripts.forked import forking
from tests.train.words import write_project
from train_series.main import main
from train_series.picture import draw
from train_series.results import Results

CONFIG = """
target: {model: target, dtype: float32}
features: last-hidden
data: {sources: [{path: talk.jsonl}], length: 32, heldout: 0.1}
batch: 2
log_every: 2
save_every: 10
optimizer: {lr: 3.0e-3}
evaluation: {heldout: 2, max_new_tokens: 6, trees: [{name: chain, depth: 2}], chain: 2}
"""
PLAN = {
    "about": "a test",
    "minutes": 5,
    "at_once": 2,
    "texts": {"all": {"file": "text.npz", "command": "data prepare $config --out $all"}},
    "set": {"evaluation.chain": 3},
    "runs": [
        {"name": "long", "config": "run.yaml", "text": "all", "steps": 60, "variant": "long",
         "series": "EAGLE-1", "keep": True},
        {"name": "short", "config": "run.yaml", "text": "all", "tokens": 640, "rate": 1000.0,
         "variant": "short", "series": "EAGLE-1", "set": {"loss.levels": 2}},
    ],
    "evaluation": {
        "trees": [{"name": "static", "branching": [2, 2]}, {"name": "chain", "depth": 3}],
        "prompts": {"words": "prompts.txt"},
        "max_new_tokens": 10,
    },
}  # fmt: skip


@pytest.fixture
def project(tmp_path):
    """A folder with a tiny target, conversations, a config and a plan."""
    write_project(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "prompts.txt").write_text("w5 w6 w7\nw10 w12 w14 w16\n")
    plan = json.loads(json.dumps(PLAN))
    command = f"data prepare {tmp_path / 'run.yaml'} --out $all"
    plan["texts"]["all"]["command"] = command
    plan["evaluation"]["set"] = {
        "target.model": str(tmp_path / "target"), "target.dtype": "float32"
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    return tmp_path


def drive(arguments, python, said):
    """Be the command in a process of its own."""
    sys.stdout = sys.stderr = open(said, "a", buffering=1)  # noqa: SIM115
    os._exit(main(arguments, python))


def steps_of(log):
    lines = log.read_text().rpartition("\n")[0].splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if '"train"' in line]


def test_a_series_that_is_killed_goes_on_where_it_was_and_is_reported(project):
    work, out, said = project / "work", project / "out", project / "said.txt"
    words = ["run", str(project / "plan.yaml"), "--work", str(work), "--out", str(out)]
    words += ["--device", "cpu", "--commit", "abc"]
    with forking(project) as (python, process):
        first = process(target=drive, args=(words, python, str(said)))
        first.start()
        until = time.monotonic() + 60
        while first.is_alive() and time.monotonic() < until:
            if steps_of(work / "long" / "log.jsonl")[-1:] >= [16]:
                break
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        stopped = steps_of(work / "long" / "log.jsonl")[-1]
        assert 16 <= stopped < 60, said.read_text()
        assert not Results.read(out / "results.json").runs["long"].finished
        again = process(target=drive, args=(words, python, str(said)))
        again.start()
        again.join(120)
        assert again.exitcode == 0, said.read_text()
    results = Results.read(out / "results.json")
    assert results == Results.read(work / "results.json")
    long, short = results.runs["long"], results.runs["short"]
    assert (long.state, long.steps, long.tokens) == ("finished", 60, 60 * 64)
    assert (short.steps, short.overrides["loss.levels"], len(short.accuracy)) == (10, 2, 2)
    assert steps_of(work / "long" / "log.jsonl") == list(range(2, 61, 2))  # none of them twice
    assert long.commit == "abc"
    assert set(long.tau) == {"static, branching [2, 2]", "chain, depth 3"}
    assert all(1 <= found.mean_tau() <= 4 for found in (long, short))
    assert len(long.n_alpha) == len(long.right) == 3
    assert long.positions == short.positions > 0
    assert not (work / "long" / "checkpoint.pt").exists()  # heads alone are kept
    with tarfile.open(out / "heads" / "long.tar") as file:
        file.extractall(project / "kept", filter="data")
    with safe_open(project / "kept" / "long" / "model.safetensors", "pt") as head:
        assert list(head.keys())
    assert [path.name for path in (out / "heads").iterdir()] == ["long.tar"]

    # What is finished is not made again, nor on a machine that has the results alone.
    before = (out / "results.json").read_bytes()
    assert Results.read(out / "results.json") == results
    elsewhere = ["--work", str(project / "new"), "--from", str(out / "results.json")]
    nothing = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert main([*words[:2], *elsewhere, "--device", "cpu"], nothing) == 0
    assert (out / "results.json").read_bytes() == before
    assert main(["report", str(out / "results.json"), "--out", str(project / "page")]) == 0
    page = (project / "page.md").read_text()
    assert f"| long (long) | 0.0 M | {long.tokens_per_second[1]:,} |" in page
    assert f"| short | {short.mean_tau():.2f} |" in page
    assert (project / "page.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_of_a_picture_is_cut_off(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    figures = Path(__file__).parents[2] / "docs" / "figures"
    for name in ("scaling", "ablations"):
        out = tmp_path / f"{name}.png"
        draw(Results.read(figures / f"{name}.json"), out)
        drawn = image.imread(out)[..., :3]
        for edge in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
            assert edge.min() == 1.0, f"{name} goes beyond its edge"
