"""Pieces of Triton kernels for authors of kernels that sample; importing it needs Triton."""

from eagle.kernels.sampling_triton import find, load_logits, weigh

__all__ = ["find", "load_logits", "weigh"]
