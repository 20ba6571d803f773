"""A pytest plug-in that notes each outcome as it comes, so that a killed run has names too."""

from __future__ import annotations

import json
import os
from typing import Any

FILE = "CHECK_GPU_TOLD"
_LONGEST = 300


def _tell(**what: Any) -> None:
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def pytest_collection_finish(session: Any) -> None:
    """Note which tests there are."""
    _tell(items=[item.nodeid for item in session.items])


def pytest_collectreport(report: Any) -> None:
    """Note files that cannot be imported."""
    if report.failed:
        _tell(test=report.nodeid, outcome="failed", why=_why(report))


def pytest_runtest_logreport(report: Any) -> None:
    """Note what became of a test; a failure of its set-up or tear-down is one too."""
    if report.failed or report.skipped or report.when == "call":
        _tell(test=report.nodeid, outcome=report.outcome, why=_why(report))


def _why(report: Any) -> str:
    """Return what went wrong, in a line; empty where nothing did."""
    if not report.failed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    return " ".join(text.split())[:_LONGEST]
