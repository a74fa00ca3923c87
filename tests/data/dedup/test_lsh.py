"""The probability that near-duplicates meet: chosen, computed, and as the library's permutations give it."""

import numpy as np
import pyarrow as pa
import pytest

from leyden.data.dedup.lsh import band_hashes, choose_bands, collision_probability, signatures


def pairs(similarity: float, union: int, count: int, seed: int) -> tuple[pa.Array, pa.Array, float]:
    """Pairs of texts whose words are two sets of exactly that similarity, which is returned as achieved."""
    generator = np.random.default_rng(seed)
    both = round(similarity * union)
    each = (union - both) // 2
    words = generator.integers(0, 1 << 60, (count, both + 2 * each))
    left = [" ".join(f"{w:x}" for w in row[: both + each]) for row in words]
    right = [" ".join(f"{w:x}" for w in np.delete(row, np.s_[both : both + each])) for row in words]
    return pa.array(left, pa.large_string()), pa.array(right, pa.large_string()), both / (both + 2 * each)


@pytest.mark.parametrize("union", [20, 300])
@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.72, 0.85])
def test_collisions_follow_the_curve_without_bias(similarity, union):
    left, right, exact = pairs(similarity, union, 400, seed=union)
    agreed, met = [], []
    for seed in range(4):
        one, other = (signatures(side, 112, 1, seed) for side in (left, right))
        agreed.append((one == other).mean())
        met.append((band_hashes(one, 14, 8) == band_hashes(other, 14, 8)).any(axis=1).mean())
    # four standard errors, had all been drawn apart
    assert np.mean(agreed) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / (400 * 112 * 4)))
    theory = collision_probability(np.array(exact), 14, 8)
    assert np.mean(met) == pytest.approx(theory, abs=4 * np.sqrt(theory * (1 - theory) / 1600) + 1e-3)


def test_permutations_are_not_alike():
    """The number of hashes in which a pair agrees spreads as a binomial's: permutations are independent."""
    left, right, exact = pairs(0.6, 200, 600, seed=3)
    agreed = (signatures(left, 112, 1, 1) == signatures(right, 112, 1, 1)).sum(axis=1)
    assert agreed.var() / (112 * exact * (1 - exact)) == pytest.approx(1, abs=0.25)


def test_the_curve_by_hand():
    assert collision_probability(np.array([0.0, 1.0]), 14, 8).tolist() == [0, 1]
    assert collision_probability(np.array(0.5), 2, 3) == pytest.approx(1 - (1 - 0.125) ** 2)
    assert collision_probability(np.array(0.72), 14, 8) == pytest.approx(0.65, abs=0.01)


@pytest.mark.parametrize(("threshold", "hashes"), [(0.5, 20), (0.8, 48), (0.9, 9), (0.05, 6)])
def test_chosen_bands_have_the_least_area_of_errors(threshold, hashes):
    from scipy.integrate import quad

    def area(b, r):
        below = quad(lambda s: 1 - (1 - s**r) ** b, 0, threshold)[0]
        return below + quad(lambda s: (1 - s**r) ** b, threshold, 1)[0]

    areas = {(b, r): area(b, r) for b in range(1, hashes + 1) for r in range(1, hashes // b + 1)}
    assert areas[choose_bands(threshold, hashes)] == pytest.approx(min(areas.values()), abs=1e-5)


def test_a_band_is_equal_just_when_its_rows_and_place_are():
    signature = np.array([[1, 2, 1, 2], [1, 2, 3, 2], [2, 1, 1, 2]], np.uint32)
    bands = band_hashes(signature, 2, 2)
    assert bands[0, 0] == bands[1, 0]
    assert bands[0, 1] == bands[2, 1]
    assert len(set(bands.ravel().tolist())) == 4  # (1, 2) of the first band is not (1, 2) of the second
