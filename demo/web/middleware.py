"""Gives each request its panel, and runs the request without ormcache when asked to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from django.core import signing
from django.db import connection
from django.http import HttpRequest, HttpResponse

import ormcache
from demo.web.panel import Panel, PanelRequest

NOTE = "demo_last_write"
"""The cookie that carries what a POST did over to the page it redirects to."""


class PanelMiddleware:
    """Puts ``request.panel`` in place and switches ormcache off for ``?ormcache=off``."""

    def __init__(self, get_response: Callable[[PanelRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: PanelRequest) -> HttpResponse:
        # Connecting is not part of the first query's time.
        connection.ensure_connection()
        enabled = request.GET.get("ormcache") != "off"
        request.panel = Panel(_path(request), enabled, last_write=_read_note(request))
        with nullcontext() if enabled else ormcache.disabled():
            response = self.get_response(request)
        if request.method == "GET" and NOTE in request.COOKIES:
            response.delete_cookie(NOTE)
        return response


def panel(request: HttpRequest) -> dict[str, Any]:
    """Context processor: the panel, and the address of this page in the other mode."""
    shown: Panel | None = getattr(request, "panel", None)
    if shown is None:
        return {}
    # The page's queries have all been asked when its template is drawn.
    shown.remember()
    query = request.GET.copy()
    query.pop("ormcache", None)
    if shown.enabled:
        query["ormcache"] = "off"
    return {
        "panel": shown,
        "other_mode": f"{request.path}?{query.urlencode()}" if query else request.path,
    }


def leave_note(response: HttpResponse, note: dict[str, Any]) -> None:
    """Have the next page of this browser show what a write did."""
    response.set_cookie(NOTE, signing.dumps(note), max_age=60, httponly=True, samesite="Lax")


def _read_note(request: HttpRequest) -> dict[str, Any] | None:
    try:
        return signing.loads(request.COOKIES[NOTE])
    except (KeyError, signing.BadSignature):
        return None


def _path(request: HttpRequest) -> str:
    query = request.GET.copy()
    query.pop("ormcache", None)
    return f"{request.path}?{query.urlencode()}"
