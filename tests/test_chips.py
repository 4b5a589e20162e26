"""Names of topologies, and chips as published."""

import pytest

from swerl_jax.policy.chips import CHIPS, parse_topology


@pytest.mark.parametrize("text, name, chips, slices", [
    ("v5p:4x4x8", "v5p:4x4x8", 128, 1), ("v6e:16x16", "v6e:16x16", 256, 1), ("v5e:8x16:x2", "v5e:8x16", 256, 2),
    (" v5p:2x2x1 ", "v5p:2x2x1", 4, 1), ("v5p:8x12x20", "v5p:8x12x20", 1920, 1),
])
def test_names_that_are_known(text, name, chips, slices):
    topology = parse_topology(text)
    assert (topology.name, topology.chips, topology.slices) == (name, chips, slices)
    assert parse_topology(str(topology)) == topology


@pytest.mark.parametrize("text, got", [
    ("v5p", "is no topology"), ("v5p-128", "is no topology"), ("", "is no topology"), ("v5p:4x4x8:2", "is no topology"),
    ("v9:2x2", "names chip 'v9'"), ("v5e:3x5", "no slice of 3x5"), ("v6e:8x8x8", "no slice of 8x8x8"),
    ("v5p:4x4", "no slice of 4x4"),
    ("v5p:0x4x4", "no slice of 0x4x4"), ("v6e:16x16:x0", "0 slices"),
])
def test_other_names_are_refused_with_those_that_are_valid(text, got):
    with pytest.raises(ValueError, match=got) as error:
        parse_topology(text)
    assert "slices" in str(error.value)
    if "0 slices" not in str(error.value):
        assert "v5e: 2x2, 2x4, 4x4" in str(error.value) and "2x2x1, 2x2x2" in str(error.value)


def test_the_nearest_name_is_told():
    with pytest.raises(ValueError, match="the nearest name is v6e:16x16"):
        parse_topology("v6e:16x61")


@pytest.mark.parametrize("name, gigahertz", [("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75)])
def test_the_clock_is_one_at_which_the_peak_is_reached(name, gigahertz):
    """By hand: 197e12 / (4 · 2 · 128²), 459e12 / (8 · 2 · 128²), 918e12 / (4 · 2 · 256²)."""
    assert CHIPS[name].clock_hz == pytest.approx(gigahertz * 1e9, rel=0.01)


def test_an_axis_that_is_no_ring_has_half_the_bandwidth():
    assert parse_topology("v5p:4x4x8").axis_bandwidth(0) == 200e9
    assert parse_topology("v5p:2x2x4").axis_bandwidth(0) == 100e9
    assert parse_topology("v5e:8x16").axis_bandwidth(0) == 50e9
    assert parse_topology("v5e:8x16").axis_bandwidth(1) == 100e9
