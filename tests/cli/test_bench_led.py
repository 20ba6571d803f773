"""``eagle bench`` in the processes that hold a target together: one prints, all do the work."""

import json
import os

import pytest

from eagle.bench import speed
from eagle.cli import main
from tests.serve.conftest import home  # noqa: F401 - a fixture
from tests.serve.test_command import options
from tests.train.together import run_together


def _bench(words, folder):
    rank = os.environ["RANK"]
    os.dup2(os.open(folder / f"out.{rank}", os.O_WRONLY | os.O_CREAT), 1)
    speed.read_bandwidth = lambda device: 1e9  # which takes seconds
    prompts = ["--prompts", str(folder / "prompts.txt"), "--max-new-tokens", "4", *words]
    for command in (
        ["bench", "speed", "eagle", "--json", str(folder / f"{rank}.json")],
        ["bench", "throughput", "eagle", "--batch", "2", "--rounds", "1"],
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*command, *prompts])
        assert exit_.value.code == 0, command


def test_speed_and_throughput_are_measured_of_a_target_that_is_cut(home, pair, tmp_path):  # noqa: F811
    (tmp_path / "prompts.txt").write_text("hello\nworld\n")
    run_together(_bench, [*options(home, pair), "--set", "target.tp_plan=auto"], tmp_path)
    said = (tmp_path / "out.0").read_text()
    assert "over 2 processes" in said
    assert said.count("tokens/s") == 2, "a table of each command"
    assert (tmp_path / "out.1").read_text() == ""
    figures = json.loads((tmp_path / "0.json").read_text())
    assert figures["sizes"]["processes"] == 2
    assert figures["command"].startswith("torchrun --nproc-per-node 2 -m eagle.cli bench speed")
    assert not (tmp_path / "1.json").exists()
