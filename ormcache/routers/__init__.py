"""Where a database alias keeps its cache, and which alias a query goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ormcache.middleware import ReadYourWritesMiddleware
    from ormcache.replica_router import ReplicaRouter

__all__ = ["ReadYourWritesMiddleware", "ReplicaRouter"]


def __getattr__(name: str) -> Any:
    # The router looks at transactions, which rest on the modules of this package: it is found
    # here when a project asks for it, and imported by none of them.
    if name == "ReplicaRouter":
        from ormcache.replica_router import ReplicaRouter

        return ReplicaRouter
    if name == "ReadYourWritesMiddleware":
        from ormcache.middleware import ReadYourWritesMiddleware

        return ReadYourWritesMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
