"""The sidecar that takes trades from Coinbase to bronze, and nothing else."""
