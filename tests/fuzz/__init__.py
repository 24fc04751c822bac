"""Programs that search for input which breaks something; not collected by pytest."""
