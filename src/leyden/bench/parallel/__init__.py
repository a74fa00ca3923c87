"""``leyden bench routers`` and ``traffic``: what ranks drop and exchange, counted."""
