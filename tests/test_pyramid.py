from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpn_bench.errors import InputError
from fpn_bench.pyramid import FeatureSpec, check_features, level_sizes, map_size


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 7))
def test_map_size_halves_and_rounds_up_level_times(height, width, level):
    h, w = height, width
    for _ in range(level):
        h, w = (h + 1) // 2, (w + 1) // 2
    assert map_size((height, width), level) == (h, w)


def test_level_sizes_take_the_maps_and_extend_both_ways():
    sizes = level_sizes({3: (21, 10), 5: (5, 3)}, (2, 3, 4, 5, 6, 7))
    assert sizes == {2: (42, 20), 3: (21, 10), 4: (11, 5), 5: (5, 3), 6: (3, 2), 7: (2, 1)}
    assert level_sizes({3: (4, 4)}, ()) == {3: (4, 4)}


@pytest.mark.parametrize("bad", [(-1, 8, 8), (3, 0, 8), (3, 8, 0)])
def test_impossible_features(bad):
    with pytest.raises(InputError, match="expected a feature of level"):
        FeatureSpec(*bad)


def test_features_are_checked():
    with pytest.raises(InputError, match="finest first"):
        check_features([FeatureSpec(4, 8, 16), FeatureSpec(3, 8, 8)])
    with pytest.raises(InputError, match="each feature level once"):
        check_features([FeatureSpec(3, 8, 8), FeatureSpec(3, 8, 8)])
