"""HTML pages for people: the report."""
