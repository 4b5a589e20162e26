"""Reinforcement learning for software engineering, in JAX: sample, score and learn on one set of chips."""

__version__ = "0.1.0"
