"""What a server decodes with, for the script that measures servers."""

from tests.serve.conftest import _no_key_of_the_environment, decoder, home

__all__ = ["_no_key_of_the_environment", "decoder", "home"]
