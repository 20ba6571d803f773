"""Work is timed as often as it is asked for, and warmed up before."""

from __future__ import annotations

import time
import weakref
from functools import partial

import torch

from eagle.runtime.stopwatch import Job, seconds_of

CPU = torch.device("cpu")


class FakeGraphs:
    """Like real ones, they keep no work that they capture; it can be refused."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.keys, self.replayed, self._refuse = set(), 0, refuse

    def capture(self, key, work):
        work()
        if self._refuse:
            raise RuntimeError("it cannot be captured")
        self.keys.add(key)

    def replay(self, key):
        self.replayed += 1
        assert key in self.keys


def test_seconds_are_those_of_the_work():
    assert 0.02 <= seconds_of(CPU, lambda: time.sleep(0.02)) < 2


def test_a_job_is_warmed_up_and_then_timed():
    done = []
    job = Job(lambda: done.append(1), None, CPU, warm_up=3)
    assert (len(done), job.times, job.captured) == (3, [], False)
    job.time()
    job.time()
    assert len(done) == 5
    assert len(job.times) == 2
    assert min(job.times) > 0


def test_a_job_is_replayed_where_there_are_graphs():
    done, graphs = [], FakeGraphs()
    jobs = [Job(lambda: done.append(1), graphs, CPU, warm_up=1) for _ in range(2)]
    assert all(job.captured for job in jobs)
    assert len(graphs.keys) == 2
    jobs[0].time()
    assert (graphs.replayed, len(done)) == (1, 4), "it is not launched anew"
    assert not any(isinstance(key, Job) for key in graphs.keys), "graphs keep no job alive"


def test_what_a_graph_reads_lives_as_long_as_its_job():
    tensor = torch.ones(3)
    alive = weakref.ref(tensor)
    job = Job(partial(torch.sum, tensor), FakeGraphs(), CPU, warm_up=1)
    del tensor
    assert alive() is not None, "a graph finds it by its address"
    del job
    assert alive() is None


def test_a_job_that_cannot_be_captured_is_launched_each_time():
    done, graphs = [], FakeGraphs(refuse=True)
    job = Job(lambda: done.append(1), graphs, CPU, warm_up=1)
    assert not job.captured
    before = len(done)
    job.time()
    assert (len(done), graphs.replayed) == (before + 1, 0)
