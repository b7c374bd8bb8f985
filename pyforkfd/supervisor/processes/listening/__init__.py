"""What workers do to the listening sockets that they share, and how it is put right."""
