"""The demo as a Django app."""

from django.apps import AppConfig


class DemoConfig(AppConfig):
    """The demo's models.

    The label is not plain ``demo``, a name that may be taken in the ``django_migrations`` of a
    database that the demo was lent.
    """

    name = "demo"
    label = "ormcache_demo"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Listen to ormcache."""
        from demo import recorder

        recorder.connect()
