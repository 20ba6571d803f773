"""A cycle's parts are timed as its decoder runs them, and a fitted tree decodes as others do."""

import shutil

import pytest

from eagle.plugin.budget import RankRates
from eagle.plugin.capabilities import FittedTree
from eagle.runtime.stopwatch import Job
from eagle.sizing import costing

RATES = RankRates(levels=((0.7, 0.2), (0.6, 0.2), (0.5, 0.2)), positions=100, source="made up")


@pytest.mark.parametrize("attention", ["sdpa", "triton"])
@pytest.mark.parametrize("mode", ["eager", "graph", "compiled"])
def test_every_part_of_a_cycle_is_timed_in_every_mode(
    make, pair, tmp_path, monkeypatch, mode, attention
):
    jobs = []

    def watched(*given, **options):
        jobs.append(Job(*given, **options))
        return jobs[-1]

    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(costing, "Job", watched)
    head = tmp_path / "head"
    shutil.copytree(pair[1], head)
    RATES.write(head)
    parts = {"head": {"name": "eagle", "weights": str(head)}, "attention": attention}
    for name in ("static", "dynamic"):
        decoder = make(mode, tree={"name": name, "size": "auto"}, **parts)
        assert not isinstance(decoder.resolved.tree, FittedTree)
        plain = make("eager", tree={"name": "static", "branching": [2]}, attention="sdpa")
        found, expected = (
            one.generate([5, 6, 7], max_new_tokens=24, ignore_eos=True) for one in (decoder, plain)
        )
        assert found.tokens == expected.tokens
    assert {job.captured for job in jobs} == {mode != "eager"}
    assert len({len(job.times) for job in jobs}) == 1, "all take turns"
    assert all(min(job.times) > 0 for job in jobs)
    assert len(jobs) == (4 + 1 + 2 + 2 if mode == "compiled" else 7 + 1 + 3 + 2)
