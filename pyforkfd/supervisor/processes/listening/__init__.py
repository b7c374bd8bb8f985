"""The listening sockets that workers share: their state, and its repair."""
