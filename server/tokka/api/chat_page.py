"""The chat page at /: the files of `web/`, read once and served from memory."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from tokka.api.page import page_headers
from tokka.errors import UnknownUrl

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parent.parent / "web"
_PAGE = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The prefix of file URLs in the page. Modules refer to each other relatively.
_PLACEHOLDER = b"ui/VERSION/"
# Text never becomes markup, so model output cannot run.
_HEADERS = page_headers("'self'", "require-trusted-types-for 'script'", "trusted-types 'none'")


@dataclass(frozen=True, slots=True)
class _Site:
    # A hash of all files, so that a page and its modules always have the same version.
    version: str
    files: Mapping[str, bytes]


@functools.cache
def _site() -> _Site:
    files = {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in _TYPES}
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    version = digest.hexdigest()[:16]
    files[_PAGE] = files[_PAGE].replace(_PLACEHOLDER, f"ui/{version}/".encode())
    return _Site(version, files)


@router.get("/")
async def page(request: Request) -> Response:
    return _answer(request, _PAGE, "no-cache")


@router.get("/ui/{version}/{name}")
async def file(version: str, name: str, request: Request) -> Response:
    if version != _site().version or name == _PAGE or name not in _site().files:
        raise UnknownUrl("This file of the chat page was not found. If the server was updated, reload the page.")
    return _answer(request, name, "public, max-age=31536000, immutable")


def _answer(request: Request, name: str, cache_control: str) -> Response:
    etag = f'"{_site().version}"'
    headers = {**_HEADERS, "cache-control": cache_control, "etag": etag}
    # A proxy that compresses turns the tag into a weak one.
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known:
        return Response(status_code=304, headers=headers)
    headers["content-type"] = _TYPES[Path(name).suffix]
    return Response(_site().files[name], headers=headers)
