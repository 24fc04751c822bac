"""The models that a modern project has of the tables of `tests/south_project`."""
