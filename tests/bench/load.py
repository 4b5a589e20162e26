"""How long a model's directory takes onto eight devices, and how much memory, against plain reading of the same bytes.

    python tests/bench/load.py [ARCH]        llama3.2-1b by default: 1.24 billion parameters in bfloat16, made here, deleted after

Parameters only. Both readings find the files in the page cache. Linux: memory is RssAnon and RssShmem of /proc, sampled.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
DEVICES = 8
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


class Memory(threading.Thread):
    """Samples the anonymous memory of this process."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = self.now()

    @staticmethod
    def now():
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) * 1024

    def run(self):
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.005)


def child(directory):
    """Loads onto fake devices; prints seconds and bytes."""
    import jax
    import jax.numpy as jnp

    from swerl_jax.learn.learner import Learner, OptimizerSettings
    from swerl_jax.learn.loss import LossSettings
    from swerl_jax.policy import hf, hf_weights
    from swerl_jax.policy.mesh import make_mesh

    arch, mesh = hf.read_arch(directory), make_mesh({"fsdp": 4, "tensor": 2})
    learner = Learner(arch, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"), param_dtype=jnp.bfloat16)
    abstract = learner.abstract.params
    for attempt in range(2):  # the second finds the little programs compiled
        memory = Memory()
        before = memory.now()
        memory.start()
        start = time.perf_counter()
        model = jax.block_until_ready(hf_weights.load(directory, arch, abstract))
        seconds = time.perf_counter() - start
        print(f"load {attempt + 1}: {seconds:.2f} s, peak anonymous memory {memory.peak / 2**30:.2f} GiB "
              f"({before / 2**30:.2f} before)", flush=True)
        del model


def read_plainly(directory):
    """Seconds to read every file into a fresh array."""
    start = time.perf_counter()
    for path in directory.glob("*.safetensors"):
        np.fromfile(path, np.uint8)
    return time.perf_counter() - start


def main(name="llama3.2-1b"):
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        arch = make(directory, name)
        print(f"{name}: {arch.parameters:,} parameters, {2 * arch.parameters / 2**30:.2f} GiB")
        for _ in range(2):
            print(f"numpy: {read_plainly(directory):.2f} s")
        flags = f"--xla_force_host_platform_device_count={DEVICES}"
        subprocess.run([sys.executable, __file__, CHILD, str(directory)], check=True, cwd=ROOT,
                       env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags})
        print(f"numpy: {read_plainly(directory):.2f} s")


if __name__ == "__main__":
    child(sys.argv[2]) if sys.argv[1:2] == [CHILD] else main(*sys.argv[1:])
