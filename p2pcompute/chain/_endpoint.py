"""What is said of a chain's endpoint."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["shown_endpoint"]


def shown_endpoint(url: str) -> str:
    """Scheme, host and port of an endpoint's URL: what else is in it may be a key, and is nobody's to read in logs,
    answers and errors."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "no URL"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"
