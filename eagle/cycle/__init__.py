"""One cycle: draft, verify, accept, commit; knows the five roles, and no request."""

from eagle.cycle.cycle import PHASES, Cycle
from eagle.cycle.drafter import with_target_ids
from eagle.cycle.models import PREFILL, Models
from eagle.cycle.pieces import GREEDY, Piece, Read
from eagle.cycle.processing import (
    Bound,
    Processing,
    Processor,
    Processors,
    for_request,
    processors_of_each,
)
from eagle.cycle.prompts import Packed, PromptReader
from eagle.cycle.reports import Report
from eagle.cycle.slots import Slots

__all__ = [
    "GREEDY",
    "PHASES",
    "PREFILL",
    "Bound",
    "Cycle",
    "Models",
    "Packed",
    "Piece",
    "Processing",
    "Processor",
    "Processors",
    "PromptReader",
    "Read",
    "Report",
    "Slots",
    "for_request",
    "processors_of_each",
    "with_target_ids",
]
