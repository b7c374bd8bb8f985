"""The control socket: its protocol, server, client, requests and status."""
