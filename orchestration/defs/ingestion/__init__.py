"""Coinbase and bronze, which Dagster watches and never writes: the ingester is its own service."""
