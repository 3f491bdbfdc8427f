"""Dagster: what it knows of the lakehouse, when it runs what, and the continuous transform."""
