"""Where a database alias keeps its cache."""
