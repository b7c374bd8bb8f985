"""Logs: records, capture of output, the shared file, sinks."""
