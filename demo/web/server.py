"""Django's development server, without its reloader."""

from __future__ import annotations

from collections.abc import Callable

from demo.errors import DemoError

HOST = "127.0.0.1"


def serve(port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the pages until interrupted."""
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
    from django.core.wsgi import get_wsgi_application

    try:
        server = ThreadedWSGIServer((HOST, port), WSGIRequestHandler)
    except OSError as error:
        raise DemoError(
            f"Cannot serve on port {port}: {error.strerror}; choose another by --port."
        ) from error
    server.daemon_threads = True
    server.set_app(get_wsgi_application())
    on_ready(f"http://{HOST}:{port}/")
    with server:
        server.serve_forever()
