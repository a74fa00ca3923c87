import pytest

from leyden.data.readers import SourceSettings, plan_shards, read_piece


def read_source(*paths, shard_bytes=1 << 20, **settings):
    """The documents and rejects of one source, read shard by shard."""
    source = SourceSettings(name="s", paths=tuple(map(str, paths)), **settings)
    rejects = []
    documents = [
        document
        for shard in plan_shards(source, shard_bytes)
        for piece in shard
        for document in read_piece(piece, source, rejects)
    ]
    return documents, rejects


@pytest.fixture(scope="session")
def read():
    return read_source
