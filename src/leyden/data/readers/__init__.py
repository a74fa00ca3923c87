"""Files of every format to documents."""

from leyden.data.readers.files import read_documents

__all__ = ["read_documents"]
