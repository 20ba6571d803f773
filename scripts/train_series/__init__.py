"""Trainings one beside the other, each measured alike; `scripts/train-series` starts it."""
