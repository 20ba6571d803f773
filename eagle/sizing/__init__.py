"""Trees that fit the machine: what cycles cost here, and the size that pays; knows no request."""

from eagle.sizing.choosing import (
    NO_FILES,
    NO_FILES_HELP,
    Account,
    account,
    cost_key,
    fit_tree,
    learn_costs,
    measure,
    rates_of,
    recall,
)
from eagle.sizing.costing import bushy_tree

__all__ = [
    "NO_FILES",
    "NO_FILES_HELP",
    "Account",
    "account",
    "bushy_tree",
    "cost_key",
    "fit_tree",
    "learn_costs",
    "measure",
    "rates_of",
    "recall",
]
