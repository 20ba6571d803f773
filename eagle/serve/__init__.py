"""An OpenAI-compatible server on an engine; knows requests over HTTP, not how tokens come about."""

from eagle.serve.app import Service, create_app
from eagle.serve.running import Running, log_to, reserved, run
from eagle.serve.settings import Settings, is_loopback

__all__ = [
    "Running",
    "Service",
    "Settings",
    "create_app",
    "is_loopback",
    "log_to",
    "reserved",
    "run",
]
