"""The page at ``/``: its files, and what a browser may do with them; knows no request's text."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from starlette.responses import FileResponse

from eagle.serve.problems import Problem

__all__ = ["page"]

_FOLDER = Path(str(resources.files("eagle.serve"))) / "page"
_KINDS = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}

_HEADERS = {
    # Everything comes from this server, and nothing is written into the page as script or style.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser asks whether it is still the same
}


def page(name: str = "index.html") -> FileResponse:
    """Return a file of the page.

    Args:
        name: of the file, which is compared with those that there are.

    Raises:
        Problem: there is none of this name.
    """
    for file in _FOLDER.iterdir():
        if file.name == name and (kind := _KINDS.get(file.suffix[1:])):
            return FileResponse(file, media_type=kind, headers=_HEADERS)
    raise Problem(404, "there is nothing at this address")
