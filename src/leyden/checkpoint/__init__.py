"""Models and training states on disk.

Reading order: ``model_directory.py`` and ``saving.py`` (models opened and written, with ``layouts/`` and ``rules.py``;
``gguf/``: as one file for llama.cpp), ``training.py`` (the state of a run,
with ``pieces.py``: what a rank holds), ``export.py`` (from the one to the other, by many ranks).
"""

from leyden.checkpoint.model_directory import load, read_config
from leyden.checkpoint.saving import convert, save

__all__ = ["convert", "load", "read_config", "save"]
