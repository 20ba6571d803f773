"""A client of OpenAI-compatible servers, of the standard library; knows HTTP and JSON, no model."""

from eagle.remote.server import Server

__all__ = ["Server"]
