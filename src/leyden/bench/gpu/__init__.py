"""``leyden bench gpu``: every kernel, training and serving on a GPU beside what the hardware allows."""
