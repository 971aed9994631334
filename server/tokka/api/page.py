"""What pages of this server have in common: nothing from elsewhere, nothing inline, no frame around them."""

from __future__ import annotations


def page_headers(script_source: str, *more: str) -> dict[str, str]:
    """Return the headers of a page. `script_source`: of its policy; `more`: further lines of that."""
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
