"""A process that reaches the database and not the cache: what it commits goes by the fence.

Nothing of Django is imported before it is needed: the child has to set it up first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

DEAD_PORT = 1
SECONDS = 60


class CutOff:
    """Such a process. It can be made to stop at a point, and be killed there."""

    def __init__(self, using: str, cache: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(using, cache, other), daemon=True)
        self._process.start()
        self._receive()

    def __enter__(self) -> CutOff:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def write(self, how: str, name: str, stop: str = "") -> Any:
        """Let it rename the author; returns "done", "stopped" or the error as text.

        Args:
            how: a key of :data:`WRITES`.
            name: the new name.
            stop: a key of :data:`STOPS`, where it stops for good.
        """
        self._pipe.send((how, name, stop))
        return self._receive()

    def kill(self) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(SECONDS)

    def _receive(self) -> Any:
        assert self._pipe.poll(SECONDS), "the process does not answer"
        return self._pipe.recv()


def _serve(using: str, cache: str, pipe: Any) -> None:
    import django

    django.setup()
    from django.conf import settings

    from tests.servers import HOST

    configuration = {**settings.CACHES[cache]}
    scheme = "redis://" if "redis" in configuration["LOCATION"] else ""
    configuration["LOCATION"] = f"{scheme}{HOST}:{DEAD_PORT}"
    settings.CACHES = {**settings.CACHES, cache: configuration}
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": cache, "SOCKET_TIMEOUT": 0.3}
    pipe.send("ready")
    while True:
        how, name, stop = pipe.recv()
        if stop:
            _stop_at(stop, pipe)
        try:
            WRITES[how](using, name)
        except Exception as error:
            pipe.send(repr(error))
        else:
            pipe.send("done")


# --- ways to write ----------------------------------------------------------------------------


def _update(using: str, name: str) -> None:
    from tests.models import Author

    Author.objects.using(using).update(name=name)


def _in_transaction(using: str, name: str) -> None:
    from django.db import transaction

    with transaction.atomic(using):
        _update(using, name)


WRITES = {"autocommit": _update, "transaction": _in_transaction}


# --- points to stop at -------------------------------------------------------------------------


def _stop_at(point: str, pipe: Any) -> None:
    from ormcache import brackets, fence_rows

    def stop() -> None:
        pipe.send("stopped")
        signal.pause()

    if point == "before the commit":
        insert = fence_rows.insert

        def insert_and_stop(*args: Any) -> None:
            insert(*args)
            stop()

        fence_rows.insert = insert_and_stop
    else:
        brackets.Bracket.end = lambda *args, **kwargs: stop()  # type: ignore[method-assign]


STOPS = ("before the commit", "after the commit")
