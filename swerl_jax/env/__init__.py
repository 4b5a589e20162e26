"""What the policy acts in: text, files and processes. Nothing here imports jax."""
