"""A site that writes authors and reads them, for requests by real and by test clients.

`python -m tests.multidb.site` serves it with its own settings, see `tests.multidb.site_settings`,
and prints its port.
"""

import asyncio
import os
import socketserver
from collections.abc import Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.servers import HOST


def authors() -> dict[str, Any]:
    """What is read, and from where."""
    from tests.models import Author

    found = list(Author.objects.order_by("pk"))
    return {
        "aliases": sorted({author._state.db for author in found}),
        "names": [author.name for author in found],
    }


def _add(name: str) -> None:
    from tests.models import Author

    Author.objects.create(name=name)


def read(request: HttpRequest) -> HttpResponse:
    return JsonResponse(authors())


def write(request: HttpRequest) -> HttpResponse:
    _add(request.GET["name"])
    return HttpResponse(status=204)


def write_and_read(request: HttpRequest) -> HttpResponse:
    _add(request.GET["name"])
    return JsonResponse(authors())


def write_and_stream(request: HttpRequest) -> StreamingHttpResponse:
    _add(request.GET["name"])

    def content() -> Iterator[str]:
        # Read when all middlewares have returned.
        yield from authors()["names"]

    return StreamingHttpResponse(content())


async def read_later(request: HttpRequest) -> HttpResponse:
    return JsonResponse(await sync_to_async(authors)())


async def write_later(request: HttpRequest) -> HttpResponse:
    """Two tasks of one request, of which the parent reads."""
    await asyncio.gather(*(sync_to_async(_add)(name) for name in request.GET["name"].split(",")))
    return JsonResponse(await sync_to_async(authors)())


urlpatterns = [
    path("read", read),
    path("write", write),
    path("write_and_read", write_and_read),
    path("write_and_stream", write_and_stream),
    path("read_later", read_later),
    path("write_later", write_later),
]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.multidb.site_settings"
    from django.core.wsgi import get_wsgi_application

    with make_server(HOST, 0, get_wsgi_application(), _Server, _Quiet) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
