"""The machine and its files: hardware, free memory, files written whole, progress bars kept quiet;
knows no model.
"""

from eagle.host.files import replacing, write_text
from eagle.host.machine import (
    free_memory,
    hardware,
    instructions,
    multiprocessors,
    shared_memory,
    versions,
)
from eagle.host.progress_bars import without_bars

__all__ = [
    "free_memory",
    "hardware",
    "instructions",
    "multiprocessors",
    "replacing",
    "shared_memory",
    "versions",
    "without_bars",
    "write_text",
]
