"""The command line: the verbs, and how errors are told."""

from leyden.cli.app import main

__all__ = ["main"]
