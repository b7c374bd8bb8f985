"""Cgroups: our tree, a leaf for each worker, pressure triggers."""
