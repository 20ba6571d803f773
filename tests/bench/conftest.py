"""A server that runs, for what measures and tests servers from outside."""

from tests.serve.conftest import _no_key_of_the_environment, decoder, home, site

__all__ = ["_no_key_of_the_environment", "decoder", "home", "site"]
