"""A service's specification: described, read, checked and compared."""
