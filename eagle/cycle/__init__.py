"""One cycle: draft, verify, accept, commit; knows the five roles, and no request."""

from eagle.cycle.cycle import PHASES, PREFILL, Cycle, Slots
from eagle.cycle.processing import Bound, Processing, Processor, Processors, processors_of_each

__all__ = [
    "PHASES",
    "PREFILL",
    "Bound",
    "Cycle",
    "Processing",
    "Processor",
    "Processors",
    "Slots",
    "processors_of_each",
]
