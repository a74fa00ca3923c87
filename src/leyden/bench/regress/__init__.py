"""``leyden bench regress``: this checkout beside another commit."""
