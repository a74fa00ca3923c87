"""The chat page: one file of HTML, which loads nothing and talks to its own server alone."""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from fastapi import APIRouter, Response


@cache
def chat_page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers it is sent with.

    Its content security policy names the page's one script and one style by their hashes: what a model writes could
    not run even if it became part of the page, which it does as text alone.
    """
    content = resources.files(__name__).joinpath("page.html").read_bytes()
    policy = (
        "default-src 'none'",
        f"script-src {_hash(content, b'script')}",
        f"style-src {_hash(content, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return content, headers


def _hash(content: bytes, tag: bytes) -> str:
    """How a policy names the text of the page's one element ``tag``."""
    (text,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


def page_routes() -> APIRouter:
    """The route of the page, which needs no key; the page asks for one."""
    router = APIRouter()
    content, headers = chat_page()

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(content, headers=headers)

    return router
