"""Processes and what they are made with: launch, sockets, readiness, cause of death."""
