"""How passes and cycles are executed: eagerly, compiled, captured, and timed; decides nothing of
what they say.
"""

from eagle.runtime.aot import AheadPass, compiler, made
from eagle.runtime.arrival import Arrival
from eagle.runtime.capturable import check_capturable
from eagle.runtime.graphs import Graphs
from eagle.runtime.runtime import MODERATE, Runtime
from eagle.runtime.stopwatch import Job, seconds_of
from eagle.runtime.warming import warm_up

__all__ = [
    "MODERATE",
    "AheadPass",
    "Arrival",
    "Graphs",
    "Job",
    "Runtime",
    "check_capturable",
    "compiler",
    "made",
    "seconds_of",
    "warm_up",
]
