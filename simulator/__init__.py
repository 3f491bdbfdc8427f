"""A local Coinbase for the demo and the tests: WebSocket and REST, with faults on demand."""
