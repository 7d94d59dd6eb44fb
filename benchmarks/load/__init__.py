"""Load test: first-packet latency as a caller hears it, over the protocol. `python -m benchmarks.load --help`."""
