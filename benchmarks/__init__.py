"""Measures what docs/performance.md and docs/scaling.md tell: each module prints its section."""
