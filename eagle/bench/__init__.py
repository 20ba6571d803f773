"""Measuring a decoder: knows how to run one and what to compare it with; prints nothing."""
