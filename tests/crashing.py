"""Processes that write, and send themselves signals at named points of a commit.

Nothing of Django is imported before it is needed: the process has to set it up first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 40
"""After so long, a test that waits for a writer fails."""


class Order(NamedTuple):
    """What a writer shall do, and when it shall do something else."""

    using: str
    ormcache: dict[str, Any]
    model: str
    pk: int
    values: dict[str, Any]
    signals: dict[str, signal.Signals]
    """What it sends itself at which of the POINTS."""
    options: dict[str, Any] = {}
    """For the connection to the database."""


POINTS = ("before arm", "armed", "before COMMIT", "after COMMIT", "before finish")


def serve(orders: Any) -> None:
    """Carry out each order in a child of its own; answer with how that ended.

    The answer is the number of the signal that killed it, negative, or its exit code: 1 if the
    write was refused.
    """
    import django

    django.setup()
    from django.conf import settings

    while (order := orders.recv()) is not None:
        settings.ORMCACHE = order.ormcache
        child = os.fork()
        if child == 0:
            _carry_out(order)
        orders.send(child)
        orders.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _carry_out(order: Order) -> None:
    from django.apps import apps
    from django.db import DatabaseError, connections, transaction

    from tests.interleaving import store_of

    _arrange(order)
    code = 0
    try:
        connections[order.using].settings_dict["OPTIONS"].update(order.options)
        rows = apps.get_model("tests", order.model).objects.using(order.using)
        with transaction.atomic(order.using):
            rows.filter(pk=order.pk).update(**order.values)
        # As any process does that ends in good order.
        store: Any = store_of(order.using)
        store._channels.flush()
    except DatabaseError:
        code = 1
    except BaseException:
        code = 2
    finally:
        os._exit(code)


def _arrange(order: Order) -> None:
    """Let this process send itself each signal once, when it is at the point."""
    from django.db.backends.base.base import BaseDatabaseWrapper

    from ormcache.brackets import Bracket
    from ormcache.leases import Keeper
    from tests.interleaving import store_of

    left = dict(order.signals)
    is_stopped_for_long = "before COMMIT" in left and signal.SIGSTOP in left.values()

    def at(point: str) -> None:
        if point in left:
            os.kill(os.getpid(), left.pop(point))

    def around(owner: Any, name: str, before: str = "", after: str = "") -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            at(before)
            result = original(*args, **kwargs)
            at(after)
            return result

        setattr(owner, name, wrapped)

    around(Bracket, "arm", before="before arm")
    around(type(store_of(order.using)), "arm", after="armed")
    around(BaseDatabaseWrapper, "_commit", before="before COMMIT", after="after COMMIT")
    around(Bracket, "_finish", before="before finish")
    if is_stopped_for_long:
        # The worst that can happen: nobody renews the intent on waking up.
        Keeper.renew = lambda keeper: None  # type: ignore[method-assign]


class Writer:
    """The other end of :func:`serve`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=[theirs], daemon=True)
        self._process.start()
        self.pid = 0

    def begin(self, using: str, row: Any, values: dict[str, Any], **order: Any) -> None:
        from django.conf import settings

        self._orders.send(
            Order(using, settings.ORMCACHE, type(row).__name__, row.pk, values, **order)
        )
        self.pid = self._receive()

    def result(self) -> int:
        return self._receive()

    def _receive(self) -> Any:
        assert self._orders.poll(SECONDS), "the writer does not answer"
        return self._orders.recv()

    def wait_until_stopped(self) -> None:
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self._process.kill()
        self._process.join(SECONDS)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
