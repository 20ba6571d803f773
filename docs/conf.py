"""Sphinx settings; built with warnings as errors by scripts/check."""

import sys
from importlib.metadata import version as _version
from pathlib import Path

# Once Sphinx's extensions are loaded, pydantic makes no models that allow more fields than named.
import eagle.serve  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))

project = "eagle-decoding"
author = "the eagle-decoding authors"
release = version = _version("eagle-decoding")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commands"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples/**/README.md"]
smartquotes = False  # --option is no dash
html_static_path = ["_static"]

# Order and signatures as the code has them; shapes and units are in the docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_class_signature = "separated"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "eagle-decoding"
html_show_copyright = False
