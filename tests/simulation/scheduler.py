"""Actors that run one step at a time, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """Raised in an actor whose process has been killed: nothing that it does counts any more."""


class Actor:
    """Something that takes steps: a thread of a process."""

    __slots__ = ("_greenlet", "is_dead", "name", "process")

    def __init__(self, name: str, process: Any, work: Callable[[], None], hub: Any) -> None:
        self.name = name
        self.process = process
        self.is_dead = False
        self._greenlet = greenlet(work, hub)


class Scheduler:
    """Who is there, who can go on, and who is running."""

    def __init__(self) -> None:
        self.hub = getcurrent()
        self.current: Actor | None = None
        self.runnable: list[Actor] = []
        self.waiting: list[Actor] = []
        self.stalled: list[Actor] = []
        """They could go on, and the scheduler does not let them for a while."""

    def everybody(self) -> list[Actor]:
        return [*self.runnable, *self.waiting, *self.stalled]

    def clear(self) -> None:
        for actors in (self.runnable, self.waiting, self.stalled):
            actors.clear()

    def spawn(self, name: str, process: Any, work: Callable[[], None]) -> None:
        self.runnable.append(Actor(name, process, work, self.hub))

    # In an actor.

    def pause(self) -> None:
        """Let others take their steps; outside of an actor there are none."""
        actor = self.current
        if actor is None:
            return
        self.check(actor)
        self.hub.switch()
        self.check(actor)

    def linger(self) -> None:
        """As `pause`, and be held up."""
        if self.current is not None:
            self.stall(self.current)
        self.pause()

    def wait(self) -> Actor:
        """Take no step until `wake` is called. The actor is what to call it with."""
        actor = self.current
        assert actor is not None, "only actors wait"
        self.check(actor)
        self.runnable.remove(actor)
        self.waiting.append(actor)
        self.hub.switch()
        self.check(actor)
        return actor

    def check(self, actor: Actor | None) -> None:
        if actor is not None and actor.is_dead:
            raise Killed

    # In the hub.

    def wake(self, actor: Actor) -> None:
        self.waiting.remove(actor)
        self.runnable.append(actor)

    def stall(self, actor: Actor) -> None:
        self.runnable.remove(actor)
        self.stalled.append(actor)

    def unstall(self) -> None:
        self.runnable.extend(self.stalled)
        self.stalled.clear()

    def step(self, actor: Actor) -> None:
        """Run one step of an actor."""
        self.current = actor
        try:
            actor._greenlet.switch()
        finally:
            self.current = None
            if actor._greenlet.dead and actor in self.runnable:
                self.runnable.remove(actor)

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True
        for actors in (self.runnable, self.waiting, self.stalled):
            if actor in actors:
                actors.remove(actor)
        self.current = actor
        try:
            if actor._greenlet:
                actor._greenlet.throw(Killed)
        except Killed:
            pass
        finally:
            self.current = None


class Event:
    """What stands for `threading.Event` between actors."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Actor] = []

    def set(self) -> None:
        self._is_set = True
        for actor in self._waiting:
            if not actor.is_dead:
                self._scheduler.wake(actor)
        self._waiting.clear()

    def wait(self, timeout: float) -> None:
        actor = self._scheduler.current
        if not self._is_set and actor is not None:
            self._waiting.append(actor)
            self._scheduler.wait()
