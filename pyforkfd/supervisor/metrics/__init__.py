"""Metrics: counted, exposed in Prometheus' formats, served over HTTP."""
