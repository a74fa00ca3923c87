"""MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman, Ullman, chapter 3).

A signature has one least hash a permutation; two texts agree in one with the probability s that is the Jaccard
similarity of their sets of shingles. Rows of a signature make a band, bands are compared as a whole: two texts meet in
one of b bands of r rows with probability 1 - (1 - s^r)^b.
"""

import numpy as np
import pyarrow as pa

from leyden.data.dedup.windows import mix
from leyden.data.engine import daft

_STEPS = 1000
"""Of the sums that stand for integrals over the similarity."""


def collision_probability(similarity: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """The probability that two texts of that Jaccard similarity meet in a band or more: the S-curve."""
    return 1.0 - (1.0 - np.asarray(similarity, np.float64) ** rows) ** bands


def choose_bands(threshold: float, num_hashes: int) -> tuple[int, int]:
    """Bands and rows whose S-curve is nearest to a step at ``threshold``.

    What is minimised is the area under the curve below the threshold (false positives), and that over it above
    (false negatives), over all b, r with b * r <= ``num_hashes``; of equals, the fewer hashes.
    """
    similarity = (np.arange(_STEPS) + 0.5) / _STEPS
    wanted = similarity >= threshold
    pairs = [(b, r) for r in range(1, num_hashes + 1) for b in range(1, num_hashes // r + 1)]
    return min(
        pairs,
        key=lambda pair: (
            np.abs(collision_probability(similarity, *pair) - wanted).mean().round(12),
            pair[0] * pair[1],
        ),
    )


def signatures(texts: pa.Array, num_hashes: int, shingle_words: int, seed: int) -> np.ndarray:
    """[D, num_hashes] uint32, by Daft.

    A shingle is hashed once (xxHash); its permutations are x -> a x + b modulo 2^61 - 1, cut to 32 bits, with a and b
    below 2^31 drawn by the seed. Collisions follow the S-curve without bias (``tests/data/dedup/test_lsh.py``). A text
    of fewer words than a shingle is one shingle; one without words has no signature that means anything.

    Args:
        texts: [D] large strings, normalised: words parted by single spaces.
        num_hashes: permutations.
        shingle_words: words in a shingle.
        seed: from 0 to 2^32 - 1.
    """
    made = daft.Series.from_arrow(texts).minhash(
        num_hashes=num_hashes, ngram_size=shingle_words, seed=seed, hash_function="xxhash3_64"
    )
    arrays = made.to_arrow()
    chunks = arrays.chunks if isinstance(arrays, pa.ChunkedArray) else [arrays]
    flat = [np.asarray(chunk.flatten()) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.uint32), *flat]).reshape(-1, num_hashes)


def band_hashes(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """[D, bands] uint64, a hash of each band's rows and of its index.

    Args:
        signature: [D, >= bands * rows] uint32.
        bands, rows: of the curve.
    """
    parts = signature[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
    hashes = np.broadcast_to(np.arange(bands, dtype=np.uint64), parts.shape[:2])
    for row in range(rows):
        hashes = mix(hashes, parts[:, :, row])
    return hashes
