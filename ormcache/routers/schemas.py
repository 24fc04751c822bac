"""In which schemas a connection of django-tenants looks for tables.

Its backend has ``schema_name`` on the connection and sends ``SET search_path`` with the next
cursor: with every one, or with ``TENANT_LIMIT_SET_CALLS`` with the first one after a switch. It
then keeps the list of schemas that it has set, a new list each time, and forgets it when another
schema is chosen. So a hit, which opens no cursor, must not depend on the path of the last one.

Nothing is imported from django-tenants: its connections are known by their attributes.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings

_APPLIED = "search_path_set_schemas"
_NO_TENANTS = object()


def applied(connection: Any) -> Any:
    """The list of schemas that django-tenants has set last; None if it has to set them anew.

    None as well for connections of other backends.
    """
    return connection.__dict__.get(_APPLIED)


def is_of_tenants(connection: Any) -> bool:
    """Whether ``connection`` is one of django-tenants."""
    return _APPLIED in connection.__dict__


def follows_attributes(connection: Any, overridden: Any) -> bool | None:
    """Whether the next query sees the schemas that the attributes of ``connection`` name.

    Args:
        connection: of any backend.
        overridden: :func:`applied`, as it was when something else may have changed the path:
            a ``SET search_path`` of the user's, or a rollback that undid one.

    Returns None if ``connection`` is none of django-tenants.
    """
    lately = connection.__dict__.get(_APPLIED, _NO_TENANTS)
    if lately is _NO_TENANTS:
        return None
    return (
        not lately
        or lately is not overridden
        or not getattr(django_settings, "TENANT_LIMIT_SET_CALLS", False)
    )


def searched(connection: Any, overridden: Any) -> Any:
    """The schemas in which a statement that is executed now finds its tables, in their order.

    Those that django-tenants has set, on whichever cursor; None where anything may have changed
    them since, and for connections of other backends.
    """
    lately = connection.__dict__.get(_APPLIED)
    return lately if lately and lately is not overridden else None


def named(connection: Any) -> tuple[object, ...]:
    """The schemas that the attributes of ``connection`` name, and what else decides of them."""
    schema = getattr(connection, "schema_name", None)
    if not is_of_tenants(connection):
        # django-tenant-schemas, and backends of one's own.
        return (schema,)
    return (
        schema,
        connection.__dict__.get("include_public_schema"),
        getattr(django_settings, "PUBLIC_SCHEMA_NAME", "public"),
        *getattr(django_settings, "PG_EXTRA_SEARCH_PATHS", ()),
    )
