"""How token shards become batches: order, packing, mixtures of sources, prefetching, held-out documents.

Everything here is a pure function of settings and a number, so that the state of a run's data is that number alone.
"""
