"""Models and training states on disk."""

from leyden.checkpoint.model_directory import convert, load, save

__all__ = ["convert", "load", "save"]
