"""Token files of other toolkits, mapped as they are: :func:`open_token_files` gives what our own shards give."""

from leyden.data.token_files.hold_out import TokenSplit as TokenSplit
from leyden.data.token_files.hold_out import split_tokens as split_tokens
from leyden.data.token_files.reader import FileRecord as FileRecord
from leyden.data.token_files.reader import open_token_files as open_token_files
from leyden.data.token_files.reader import read_token_files as read_token_files

__all__ = ["FileRecord", "TokenSplit", "open_token_files", "read_token_files", "split_tokens"]
