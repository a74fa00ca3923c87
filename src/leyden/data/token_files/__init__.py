"""Token files of other toolkits, mapped as they are: :func:`open_token_files` gives what our own shards give."""

from leyden.data.token_files.reader import open_token_files as open_token_files

__all__ = ["open_token_files"]
