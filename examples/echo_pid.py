"""A freshly started program that inherits a listening socket as descriptor 3."""

import os
import socket

with socket.socket(fileno=3) as listener:
    listener.settimeout(20)
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"%d" % os.getpid())
