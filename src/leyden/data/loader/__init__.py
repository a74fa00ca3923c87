"""How token shards become sequences: order, packing, mixtures, prefetch. :mod:`leyden.data.packing` makes the batches.

Everything here is a pure function of settings and a number, so that the state of a run's data is that number alone.
"""
