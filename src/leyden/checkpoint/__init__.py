"""Models and training states on disk."""

from leyden.checkpoint.model_directory import convert, load, read_config, save

__all__ = ["convert", "load", "read_config", "save"]
