"""One cycle: draft, verify, accept, commit; knows the five roles, and no request."""

from eagle.cycle.cycle import PHASES, PREFILL, Cycle, Slots
from eagle.cycle.processing import Processing, Processors, processors_of_each

__all__ = ["PHASES", "PREFILL", "Cycle", "Processing", "Processors", "Slots", "processors_of_each"]
