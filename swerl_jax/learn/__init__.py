"""What learns: advantages, batches, losses, the optimiser step, checkpoints and the loop."""
