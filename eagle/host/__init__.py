"""The machine and its files: hardware, free memory, files written whole, progress bars kept quiet;
knows no model.
"""

from eagle.host.files import (
    FULL_DISK,
    disk_error,
    expanded,
    is_sealed,
    is_there,
    replacing,
    seal,
    write_text,
)
from eagle.host.guard import guarded
from eagle.host.machine import (
    free_memory,
    hardware,
    instructions,
    multiprocessors,
    shared_memory,
    versions,
)
from eagle.host.progress_bars import without_bars
from eagle.host.turns import Turn, Whole, in_turn

__all__ = [
    "FULL_DISK",
    "Turn",
    "Whole",
    "disk_error",
    "expanded",
    "free_memory",
    "guarded",
    "hardware",
    "in_turn",
    "instructions",
    "is_sealed",
    "is_there",
    "multiprocessors",
    "replacing",
    "seal",
    "shared_memory",
    "versions",
    "without_bars",
    "write_text",
]
