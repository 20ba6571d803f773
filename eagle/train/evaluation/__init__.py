"""How good a head is: rank replay, its figures, and the curves of runs; trains nothing."""

from eagle.train.evaluation.figure import draw, require_matplotlib
from eagle.train.evaluation.measure import Measure, Measured
from eagle.train.evaluation.rates import embedded_prompts, measure_rates
from eagle.train.evaluation.replay import fixed_paths
from eagle.train.evaluation.report import Run, read_run, run_names

__all__ = [
    "Measure",
    "Measured",
    "Run",
    "draw",
    "embedded_prompts",
    "fixed_paths",
    "measure_rates",
    "read_run",
    "require_matplotlib",
    "run_names",
]
