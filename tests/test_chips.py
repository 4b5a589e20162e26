"""Names of topologies, and chips as published."""

import itertools
import subprocess

import pytest
from launching import LAUNCH

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
    ("v5p:4x4", "no slice of 4x4"), ("v5p:0x4x4", "no slice of 0x4x4"), ("v5p:16x16x28", "no slice of 16x16x28"),
    ("v6e:16x16:x0", "0 slices"), ("v5e:2x2:x2", "several hosts in each"),
])
def test_other_names_are_refused_with_those_that_are_valid(text, got):
    with pytest.raises(ValueError, match=got) as error:
        parse_topology(text)
    for valid in ("v5e: 1x1, 2x2, 2x4, 4x4", "2x2x1, 2x2x2", "A <= B <= C, at most 16x16x24", "N slices"):
        assert valid in str(error.value)


@pytest.mark.parametrize("wrong, near", [("v6e:16x61", "v6e:16x16"), ("v5e:4x2", "v5e:2x4"), ("v5p:8x4x4", "v5p:4x4x8"),
                                         ("v5p:8x8x9", "v5p:8x8x8")])
def test_the_nearest_name_is_told(wrong, near):
    with pytest.raises(ValueError, match=f"the nearest name is {near};"):
        parse_topology(wrong)


@pytest.mark.parametrize("text, host, hosts", [
    ("v5e:1x1", (1, 1), 1), ("v5e:2x2", (2, 2), 1), ("v6e:2x4", (2, 4), 1), ("v6e:2x4:x3", (2, 2), 6), ("v5e:16x16", (2, 2), 64),
    ("v5p:2x2x1", (2, 2, 1), 1), ("v5p:2x2x2", (2, 2, 1), 2), ("v5p:4x4x8:x2", (2, 2, 1), 64),
])
def test_hosts(text, host, hosts):
    topology = parse_topology(text)
    assert (topology.host, topology.hosts, topology.hosts * topology.chips_per_host) == (host, hosts, topology.chips)


def test_the_launch_scripts_know_the_same_names_and_hosts():
    """All boxes of these sides; the eight chips of one of two slices are asked of GKE in hosts of four."""
    boxes = {chip: itertools.product((1, 2, 4, 6, 8, 16, 24, 28), repeat=3 if chip == "v5p" else 2) for chip in CHIPS}
    names = [f"{chip}:{'x'.join(map(str, box))}" for chip in CHIPS for box in boxes[chip]]
    names += [f"{chip.name}:{shape}:x2" for chip in CHIPS.values() for shape in chip.shapes]
    names += ["v5p:4x4x8:x2", "v5p:8x4x4:x2", "v5p:4x4", "v6e:4x4x4", "v5e:0x2"]
    known = {}
    for name in names:
        try:
            known[name] = str(parse_topology(name).hosts)
        except ValueError:
            known[name] = ""
    program = """source "$0/options.sh"; source "$0/topology.sh"; while read -r name; do
        case "$name" in v[56]e:2x4:x2) asked=4 ;; *) asked="" ;; esac
        (read_topology "$name" $asked 2>/dev/null && echo "$name $((HOSTS * SLICES))") || echo "$name "; done"""
    result = subprocess.run(["bash", "-c", program, str(LAUNCH)], input="\n".join([*names, ""]), capture_output=True, text=True,
                            check=True, timeout=120)
    assert dict(line.split(" ") for line in result.stdout.splitlines()) == known
    assert sum(map(bool, known.values())) > 40


@pytest.mark.parametrize("name, gigahertz", [("v5e", 1.5), ("v5p", 1.75), ("v6e", 1.75)])
def test_the_clock_is_one_at_which_the_peak_is_reached(name, gigahertz):
    """By hand: 197e12 / (4 · 2 · 128²), 459e12 / (8 · 2 · 128²), 918e12 / (4 · 2 · 256²)."""
    assert CHIPS[name].clock_hz == pytest.approx(gigahertz * 1e9, rel=0.01)


def test_an_axis_that_is_no_ring_has_half_the_bandwidth():
    assert parse_topology("v5p:4x4x8").axis_bandwidth(0) == 200e9
    assert parse_topology("v5p:2x2x4").axis_bandwidth(0) == 100e9
    assert parse_topology("v5e:8x16").axis_bandwidth(0) == 50e9
    assert parse_topology("v5e:8x16").axis_bandwidth(1) == 100e9
