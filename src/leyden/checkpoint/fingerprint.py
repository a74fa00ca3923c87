"""What tells the weights of a model on disk from others."""

import hashlib

from leyden.checkpoint.stored_weights import StoredWeights
from leyden.checkpoint.training import checkpoint_fingerprint, is_checkpoint
from leyden.core.checksums import file_hashes, read_checksums

_SETTINGS = ("config.json", "tokenizer.json")


def fingerprint_of(weights: StoredWeights) -> str:
    """A hash of weights, shape and tokenizer. It is read from the lists of hashes that Leyden writes beside them; files
    that have none are read through."""
    directory = weights.files.directory
    if is_checkpoint(directory):
        return checkpoint_fingerprint(directory)
    files = sorted({tensor.file.name for tensor in weights.files.stored.values()})
    names = [*files, *_SETTINGS]
    listed = read_checksums(directory)
    if all(name in listed for name in files):
        found = [listed[name] for name in files] + file_hashes(directory, list(_SETTINGS))
    else:
        found = file_hashes(directory, names)
    return hashlib.sha256("\n".join(map(str, found)).encode()).hexdigest()
