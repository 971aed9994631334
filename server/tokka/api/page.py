"""Headers of all pages of this server: no foreign content, no inline code, no framing."""

from __future__ import annotations


def page_headers(script_source: str, *more: str) -> dict[str, str]:
    """Return the headers of a page. `script_source`: its `script-src`; `more`: further directives of its policy."""
    policy = (
        "default-src 'none'",
        f"script-src {script_source}",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        *more,
    )
    return {
        "content-security-policy": "; ".join(policy),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
    }
