"""One folder per domain. Dagster finds what is in them by itself."""
