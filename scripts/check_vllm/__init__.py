"""Exported heads, served by vLLM on a CPU and held against this library's own acceptance."""
