"""The API reference at /docs: Swagger UI from the files of a package, under a policy that runs no other script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from tokka.api.page import page_headers

router = APIRouter(include_in_schema=False)

_START = """
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  layout: "BaseLayout",
  presets: [SwaggerUIBundle.presets.apis],
  // Nothing is sent to swagger.io.
  validatorUrl: null,
});
"""
# Relative URLs, because a proxy may publish the page below a prefix.
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tokka API</title>
<link rel="stylesheet" href="docs-assets/swagger-ui.css">
<link rel="icon" href="docs-assets/favicon.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs-assets/swagger-ui-bundle.js"></script>
<script>{_START}</script>
</body>
</html>
"""
_START_HASH = base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()
_HEADERS = {
    **page_headers(f"'self' 'sha256-{_START_HASH}'"),
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}


@router.get("/docs")
async def reference() -> Response:
    return Response(_PAGE, headers=_HEADERS, media_type="text/html")


@router.get("/docs/")
async def reference_below() -> Response:
    # The page's relative URLs only work without a trailing slash.
    return RedirectResponse("../docs")


def assets() -> StaticFiles:
    """Return the app that serves the files the page loads."""
    return StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static")
