"""Sphinx settings; built with warnings as errors by scripts/check."""

from importlib.metadata import version as _version

project = "eagle-decoding"
author = "the eagle-decoding authors"
release = version = _version("eagle-decoding")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples/**/README.md"]
html_static_path = ["_static"]

html_theme = "furo"
html_title = "eagle-decoding"
