"""A project whose replica is a mirror in tests, as Django's documentation recommends."""
