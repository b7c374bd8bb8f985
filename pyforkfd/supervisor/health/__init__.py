"""Health of workers: stale heartbeats, memory limits."""
