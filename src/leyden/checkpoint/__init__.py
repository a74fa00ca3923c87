"""Models and training states on disk.

Reading order: ``model_directory.py`` (models, with ``layouts/`` and ``rules.py``), ``training.py`` (the state of a run,
with ``pieces.py``: what a rank holds), ``export.py`` (from the one to the other, by many ranks).
"""

from leyden.checkpoint.model_directory import convert, load, read_config, save

__all__ = ["convert", "load", "read_config", "save"]
