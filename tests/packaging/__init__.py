"""Tests of what is shipped: wheels, environments, pinned versions."""
