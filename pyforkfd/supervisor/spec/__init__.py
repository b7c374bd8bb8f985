"""A service's specification: read, checked, compared; nothing is looked up or opened."""
