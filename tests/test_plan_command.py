"""`--plan` and `--plan_json` through the command line, and plans of several slices; by the real TPU compiler."""

import importlib.util
import json
import re

import pytest
import small

from swerl_jax import assemble, config as config_lib
from swerl_jax.learn import plan, plan_programs
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.chips import parse_topology

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("libtpu") is None,
                                                   reason='needs the TPU compiler: pip install -e ".[tpu]"')]
CONFIG = """
from swerl_jax import config as config_lib
from swerl_jax.policy import arch

arch.ARCHS["two"] = arch.Arch(V=512, D=256, L=16, N=4, K=2, H=128, F=512)


def get_config():
    return config_lib.update(config_lib.default(), {
        "phases": ("sft", "rl"), "model.arch": "two", "tokenizer": "byte",
        "prompt.max_tokens": 256, "answer.max_tokens": 128, "engine.groups": 4,
        "engine.prefix_buckets": (256,), "engine.ticks": 128, "learner.block": 128, "rl.prompts": 4,
        "rl.samples": 4, "learner.vocabulary_chunk": 128})
"""


def planned(folder, *arguments):
    """(what is printed, what is written)."""
    (folder / "two.py").write_text(CONFIG)
    result = small.run(f"--config={folder / 'two.py'}", f"--plan_json={folder / 'plan.json'}", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads((folder / "plan.json").read_text())


def agree(text, record):
    """Every number of the record's that has a line in the table is there as it is."""
    def line(name, after="memory of a chip"):
        found = re.search(rf"^ +{re.escape(name)}  +(.*)$", text[text.index(f"\n{after} "):], re.MULTILINE)
        assert found, (name, text)
        return [float(word) for word in found[1].split() if re.fullmatch(r"[\d.e+-]+", word)]

    parts = record["resident_bytes"] | {f"{name} (while sampling)": held for name, held in record["sampling_bytes"].items()}
    for name, held in (parts | {"at the worst moment": max(record["peak_bytes"].values())}).items():
        assert line(name)[0] == pytest.approx(held / 2**30, rel=1e-3)
    for name, seconds in (record["phases"] | {"one RL step, nothing overlapped": record["step_s"]}).items():
        assert line(name, "by phase") == pytest.approx([seconds["roofline_s"], seconds["compiler_s"]], rel=5e-3)
    assert float(re.search(r"MFU ([\d.]+)%", text)[1]) == pytest.approx(100 * record["mfu"], abs=0.06)


def test_what_does_not_fit_is_told_with_the_nearest_that_does(tmp_path):
    """Caches of 3,328 prompts are 16.25 GiB on each of four chips; of a half of them they leave enough."""
    text, record = planned(tmp_path, "--plan=v5e:2x2", "--config.engine.groups=3328")
    columns = 256 + 4 * (128 + 128)  # of sixteen layers, two key heads, keys and values, 128 numbers of two bytes
    assert record["sampling_bytes"]["K/V cache"] == 3328 / 4 * columns * 16 * 2 * 2 * 128 * 2 == 16.25 * 2**30
    assert record["phase"] == "rl" and "sft is planned with --config.phases=\"('sft',)\"" in text
    faults = {program["phase"] for program in record["programs"] if "GiB more than a chip has" in program["fault"]}
    assert not record["fits"] and "DOES NOT FIT" in text and faults == {"reshard", "prefill", "decode"}
    changes, nearest = record["nearest"]["changes"], record["nearest"]["plan"]
    assert changes == {"engine.groups": 1664} and nearest["fits"] and nearest["spare_bytes"] > 0
    refused, better = text.split("\n\nthe nearest settings that fit: --config.engine.groups=1664\n")
    assert "smaller --config.engine.groups" in refused and all(advice in refused for advice in record["advice"])
    agree(better, nearest)


def test_gradients_are_summed_between_slices_at_the_rate_of_their_network():
    """Two slices of 4 × 2 chips: a chip hands its part of the gradient over, in bfloat16, with what is summed before it is cut."""
    topology, arch = parse_topology("v5e:2x4:x2"), Arch(V=512, D=256, L=2, N=4, K=2, H=64, F=512)
    config = config_lib.update(config_lib.default(), {
        "phases": ("rl",), "prompt.max_tokens": 256, "answer.max_tokens": 128, "engine.prefix_buckets": (256,),
        "engine.ticks": 128, "learner.block": 128, "rl.prompts": 16, "rl.samples": 4, "learner.vocabulary_chunk": 128,
        "mesh.tensor": 2, "learner.remat": "layer"})
    parts = assemble.plan_parts(config, arch, assemble.mesh(config, plan.devices(topology)))
    assert parts.learner.mesh.shape["slice"] == 2
    found, = (r for r in plan.make(parts, topology, sides=["learning"]).reports if r.name.startswith("gradient"))
    gradient, *_ = plan_programs.learning(parts)
    sent = plan.compiled(gradient.traced).work.sent
    between = sum(size for transfer, size in sent.items() if max(transfer.group) >= topology.chips // topology.slices)
    part = 2 * (arch.parameters - 5 * 256) / 8  # bytes of all matrices
    assert part < between < 1.5 * part
    network = topology.chip.slice_bandwidth
    assert between / network < found.links_s < between / network + (found.sent_bytes - between) / topology.chip.link_bandwidth
    assert found.roof == "links"
