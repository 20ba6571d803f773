"""The figures of a GPU machine, held against the last ones; `scripts/check-gpu` starts it."""
