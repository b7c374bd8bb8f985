"""Servers of others that start as root and change their user, under a supervisor."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from children import needs_root
from leaks import gone as reached
from supervised import Supervised
from tools import tool

NGINX = """
daemon off; pid {folder}/pid; error_log stderr notice; user nobody nogroup;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 "served"; }} }}
}}
"""
PHP_FPM = """
[global]
error_log = /proc/self/fd/2
[www]
user = nobody
group = nogroup
listen = 127.0.0.1:{port}
pm = static
pm.max_children = 1
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number: int = free.getsockname()[1]
    return number


def supervised(folder: Path, capabilities: str, *command: str) -> Supervised:
    words = ["--readiness", "started", "--name", "web"]
    if capabilities:
        words += ["--capabilities", capabilities]
    return Supervised(folder, arguments=[*words, "--", *command])


def named(running: Supervised) -> str:
    """The capabilities that the report at the start names, for the command line."""
    found = running.log.wait_for(r"web: runs as root .*privileges\.capabilities = \[(.*?)\]")
    return found[1].replace('"', "").replace(" ", "")


@needs_root
def test_nginx(shared_path: Path, port: int) -> None:
    """It cannot start, and the log names what lets it: with that it serves."""
    nginx = shutil.which("nginx", path="/usr/sbin:/sbin") or tool("nginx", "nginx-light")
    config = shared_path / "config"
    config.write_text(NGINX.format(folder=shared_path, port=port))
    command = [nginx, "-e", "stderr", "-c", str(config)]
    with supervised(shared_path, "", *command) as running:
        running.log.wait_for(r"died \(exit\): .*EPERM is likely.*privileges\.capabilities = \[")
        capabilities = named(running)
    with supervised(shared_path, capabilities, *command) as running:
        running.until("^ready")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.makefile("rb").read().endswith(b"served")
        assert "as root" not in running.log.text()


@needs_root
def test_php_fpm(shared_path: Path, port: int) -> None:
    """Its master runs on while its children die, so the report at the start is all there is."""
    found = sorted(Path("/usr/sbin").glob("php-fpm*"))
    php_fpm = str(found[-1]) if found else tool("php-fpm", "php-fpm")
    config = shared_path / "config"
    config.write_text(PHP_FPM.format(port=port))
    command = [php_fpm, "--nodaemonize", "-y", str(config)]
    with supervised(shared_path, "", *command) as running:
        running.log.wait_for("child .* exited with code 70")
        capabilities = named(running)
    with supervised(shared_path, capabilities, *command) as running:
        running.until("^ready")
        (pid,) = [worker["pid"] for worker in running.workers()]
        children = Path(f"/proc/{pid}/task/{pid}/children")
        assert reached(lambda: bool(children.read_text().split()))

        def owner() -> int:
            return Path(f"/proc/{children.read_text().split()[0]}").stat().st_uid

        assert reached(lambda: owner() == 65534)
        # It must be able to end its children, which are another user's.
        running.stop()
        assert "killing it" not in running.log.text()
        assert "exited with code" not in running.log.text()
