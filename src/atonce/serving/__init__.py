"""Models behind an HTTP interface: batching, jobs, keys, limits, metrics, health."""
