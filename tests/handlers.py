"""Handlers of signals, which run between any two steps of the thread that they interrupt."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class TimeLimit(Exception):
    """As Celery's SoftTimeLimitExceeded."""


def raise_limit(*args: Any) -> None:
    """A handler that is a time limit."""
    raise TimeLimit


@contextmanager
def handling(handler: Callable[..., Any] = raise_limit) -> Iterator[None]:
    """Inside, it handles the signal that :func:`interrupted` sends."""
    usual = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, usual)


def interrupted(*args: Any, **kwargs: Any) -> None:
    """Stands for a step that a signal interrupts."""
    signal.raise_signal(signal.SIGUSR1)
