"""A Django project on real GeoNames data that shows what ormcache does: ``python -m demo``."""
