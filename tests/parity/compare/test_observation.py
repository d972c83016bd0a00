"""Differences of arrays, and the unit that they are counted in."""

import numpy as np
import pytest

from parity.compare.observation import difference, ulp


def test_a_difference_says_where_how_far_and_how_many_ulps():
    b = np.array([[1.0, 2.0], [4.0, 8.0]])
    a = b.copy()
    a[1, 0] += 2**-50  # one ulp of 4 is 2^-50
    found = difference(a, b, None, "float64")
    assert (found.index, found.ulps, found.relative) == ((1, 0), 1.0, 2**-50 / 8)


@pytest.mark.parametrize(("dtype", "of_one"), [("float64", 2.0**-52), ("float32", 2.0**-23), ("bfloat16", 2.0**-7)])
def test_an_ulp_is_the_step_to_the_next_number_of_the_type(dtype, of_one):
    assert ulp(1.0, dtype) == of_one
    assert ulp(3.0, dtype) == 2 * of_one
