"""How good a head is: rank replay, its figures, and the curves of runs; trains nothing."""

from eagle.train.evaluation.conversations import converse
from eagle.train.evaluation.figure import draw, require_matplotlib
from eagle.train.evaluation.kept import KeptAnswers, KeptSet
from eagle.train.evaluation.measure import Measure, Measured
from eagle.train.evaluation.places import draw_simulation
from eagle.train.evaluation.rates import (
    LEVELS,
    Ranked,
    answered,
    embedded_prompts,
    measure_rates,
    rank_rates,
    ranked,
    ranked_answers,
    require_ranks,
)
from eagle.train.evaluation.replay import fixed_paths
from eagle.train.evaluation.report import Run, read_run, run_names
from eagle.train.evaluation.simulation import Simulation, simulate

__all__ = [
    "LEVELS",
    "KeptAnswers",
    "KeptSet",
    "Measure",
    "Measured",
    "Ranked",
    "Run",
    "Simulation",
    "answered",
    "converse",
    "draw",
    "draw_simulation",
    "embedded_prompts",
    "fixed_paths",
    "measure_rates",
    "rank_rates",
    "ranked",
    "ranked_answers",
    "read_run",
    "require_matplotlib",
    "require_ranks",
    "run_names",
    "simulate",
]
