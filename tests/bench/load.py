"""How long a model's directory takes onto eight devices, and how much memory, against plain reading of the same bytes.

    python tests/bench/load.py [ARCH]        llama3.2-1b by default: 1.24 billion parameters in bfloat16, made here, deleted after

Parameters only. Both ways of reading, in turn in one process, find the files in the page cache and fill fresh memory; the
plain one is `np.fromfile` of every file. Linux: memory is RssAnon and RssShmem of /proc, sampled.
"""

import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DEVICES, TURNS = 8, 7
CHILD = "--child"


def make(directory, name):
    """Writes random parameters, tensor after tensor."""
    from swerl_jax.policy import hf, hf_weights, stored
    from swerl_jax.policy.arch import ARCHS

    arch, rng, dtype = ARCHS[name], np.random.default_rng(0), hf_weights.DTYPES["bfloat16"]
    parts = [stored.Part(tensor, shape, lambda shape=shape: (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype))
             for tensor, shape in hf_weights.shapes(arch).items()]
    stored.write(directory, parts, dtype, 2_000_000_000)
    (directory / "config.json").write_text(json.dumps(hf.config(arch, "bfloat16")))
    return arch


class Memory:
    """The highest anonymous memory of this process that was seen inside its blocks."""

    def __init__(self):
        self.peak = self._now()

    def __enter__(self):
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *error):
        self._is_over.set()
        self._thread.join()

    def _watch(self):
        while not self._is_over.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now():
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024


def child(directory):
    """Reads both ways, in turn; prints seconds and bytes."""
    import jax
    import jax.numpy as jnp

    from swerl_jax.learn.learner import Learner, OptimizerSettings
    from swerl_jax.learn.loss import LossSettings
    from swerl_jax.policy import hf, hf_weights
    from swerl_jax.policy.mesh import make_mesh

    arch, mesh = hf.read_arch(directory), make_mesh({"fsdp": 4, "tensor": 2})
    learner = Learner(arch, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"), param_dtype=jnp.bfloat16)
    abstract = learner.abstract.params
    plain, ours, memory = [], [], Memory()
    before = memory.peak
    for turn in range(TURNS):
        plain.append(read_plainly(directory))
        with memory:
            start = time.perf_counter()
            model = jax.block_until_ready(hf_weights.load(directory, arch, abstract))
            ours.append(time.perf_counter() - start)
        del model
        gc.collect()  # gives back what jax has put aside
        print(f"turn {turn + 1}: numpy {plain[-1]:.2f} s, load {ours[-1]:.2f} s", flush=True)
    limit = 2 * arch.parameters * 1.25 + 0.6 * 2**30
    ratio = statistics.median(ours) / statistics.median(plain)
    print(f"medians: numpy {statistics.median(plain):.2f} s, load {statistics.median(ours):.2f} s, {ratio:.2f} times (at most 1.5)")
    print(f"peak anonymous memory {memory.peak / 2**30:.2f} GiB, {before / 2**30:.2f} before (at most {limit / 2**30:.2f})")


def read_plainly(directory):
    """Seconds to read every file into a fresh array."""
    start = time.perf_counter()
    arrays = [np.fromfile(path, np.uint8) for path in pathlib.Path(directory).glob("*.safetensors")]
    seconds = time.perf_counter() - start
    del arrays
    return seconds


def main(name="llama3.2-1b"):
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        arch = make(directory, name)
        print(f"{name}: {arch.parameters:,} parameters, {2 * arch.parameters / 2**30:.2f} GiB", flush=True)
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        subprocess.run([sys.executable, __file__, CHILD, str(directory)], check=True, cwd=ROOT,
                       env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})


if __name__ == "__main__":
    child(sys.argv[2]) if sys.argv[1:2] == [CHILD] else main(*sys.argv[1:])
