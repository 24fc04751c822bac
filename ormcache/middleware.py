"""Lets a user's next request read what the last one has written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings as django_settings
from django.core import signing
from django.db import connections
from django.http import HttpRequest, HttpResponseBase

from ormcache.replica_router import is_over, position_of
from ormcache.routers import pins
from ormcache.routers.pins import Pin, Scope
from ormcache.routers.positions import Position

_SALT = "ormcache.routers.ReadYourWritesMiddleware"


class ReadYourWritesMiddleware:
    """Carries what a request has written over to the user's next requests, in a signed cookie.

    For synchronous and asynchronous projects. Put it first in ``MIDDLEWARE``: it does not see what
    the middlewares before it write. A request that writes nothing sets no cookie. The cookie is
    never deleted, because a request that was slow would delete that of a later write; it ends by
    itself.
    """

    sync_capable = True
    async_capable = True

    cookie_name = "ormcache_pins"
    """The name of the cookie."""
    max_age = 600
    """For so many seconds after the last write, the cookie is heeded at most."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Answer ``request``; a coroutine, if the next middleware makes one."""
        if self._is_async:
            return self._answer_later(request)
        told = self._told(request)
        scope = pins.begin(told)
        response = self._get_response(request)
        self._tell(request, response, told, scope)
        return response

    async def _answer_later(self, request: HttpRequest) -> HttpResponseBase:
        told = self._told(request)
        scope = pins.begin(told)
        response: HttpResponseBase = await self._get_response(request)
        if scope.pins:
            # The primary may have to be asked for its position.
            await sync_to_async(self._tell)(request, response, told, scope)
        else:
            self._tell(request, response, told, scope)
        return response

    def _told(self, request: HttpRequest) -> dict[str, Pin]:
        """The pins in the cookie that matter still; none if it is too old or not one of ours."""
        cookie = request.COOKIES.get(self.cookie_name)
        if cookie is None:
            return {}
        try:
            packed = signing.loads(cookie, salt=_SALT, max_age=self.max_age)
            told = dict(_unpacked(packed))
        except (signing.BadSignature, ValueError, TypeError, AttributeError):
            return {}
        return {primary: pin for primary, pin in told.items() if not is_over(pin)}

    def _tell(
        self,
        request: HttpRequest,
        response: HttpResponseBase,
        told: Mapping[str, Pin],
        scope: Scope,
    ) -> None:
        held = [pin for pin in list(scope.pins.values()) if not is_over(pin)]
        if any(pin is not told.get(pin.primary) for pin in held):
            response.set_cookie(
                self.cookie_name,
                signing.dumps(_packed(held), salt=_SALT),
                max_age=self.max_age,
                secure=request.is_secure(),
                httponly=True,
                samesite="Lax",
                # Where that of the session is valid.
                path=django_settings.SESSION_COOKIE_PATH,
                domain=django_settings.SESSION_COOKIE_DOMAIN,
            )


def _packed(held: Iterable[Pin]) -> dict[str, tuple[str | None, int]]:
    """By primary: its position, and when it was written, in milliseconds of Unix time."""
    packed = {}
    for pin in held:
        position = position_of(pin)
        age = time.monotonic() - pin.at
        packed[pin.primary] = (
            None if position is None else str(position),
            int((time.time() - age) * 1000),
        )
    return packed


def _unpacked(packed: Any) -> Iterable[tuple[str, Pin]]:
    """The inverse of :func:`_packed`. Raises ValueError, TypeError or AttributeError."""
    for primary, (text, written) in packed.items():
        if primary in connections:
            # The clock of the machine that wrote may be ahead of ours.
            age = max(0.0, time.time() - written / 1000)
            position = None if text is None else Position.parse(text)
            yield primary, Pin(primary, time.monotonic() - age, position)
