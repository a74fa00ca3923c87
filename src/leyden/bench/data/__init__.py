"""``leyden bench data`` and ``planted``: the data engine beside datatrove, and on a corpus with known faults."""
