"""A user reads in his next request what he has written in the last one."""

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core import signing
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory

from ormcache import middleware, replicas
from ormcache.connection_state import state_of
from ormcache.routers import ReadYourWritesMiddleware, ReplicaRouter, pins, positions
from tests.aliases import alias_of
from tests.marks import on_databases, on_replicated
from tests.models import Author
from tests.multidb.conftest import PRIMARY, REPLICA, Pair, reader
from tests.servers import HOST

COOKIE = ReadYourWritesMiddleware.cookie_name
MIDDLEWARE = ["ormcache.routers.ReadYourWritesMiddleware"]


@pytest.fixture
def site(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.multidb.site"
    settings.MIDDLEWARE = MIDDLEWARE
    settings.ALLOWED_HOSTS = ["*"]


@pytest.fixture
def paused(routed: Pair, site: None) -> Pair:
    """The site with a replica that shows nothing new."""
    routed.replica.pause_replay()
    return routed


def catch_up(pair: Pair) -> None:
    pair.replica.resume_replay()
    pair.replica.wait_for_primary()


OLD = {"aliases": [REPLICA], "names": ["old"]}
NEW = {"aliases": [PRIMARY], "names": ["old", "new"]}
CAUGHT_UP = {"aliases": [REPLICA], "names": ["old", "new"]}


# --- from one request to the next --------------------------------------------------------------


@on_replicated()
def test_the_next_request_reads_what_the_last_one_has_written(paused: Pair) -> None:
    user, other = Client(), Client()
    assert user.get("/read").json() == OLD
    user.post("/write?name=new")
    for _ in range(3):
        assert user.get("/read").json() == NEW
        assert other.get("/read").json() == OLD
    catch_up(paused)
    assert user.get("/read").json() == CAUGHT_UP
    assert other.get("/read").json() == CAUGHT_UP


@on_replicated()
def test_it_does_so_in_coroutines(paused: Pair) -> None:
    async def requests() -> list[Any]:
        user, other = AsyncClient(), AsyncClient()
        return [
            (await client.get(path)).json()
            for client, path in (
                (user, "/read_later"),
                (user, "/write_later?name=new"),
                (user, "/read_later"),
                (user, "/read"),
                (other, "/read_later"),
            )
        ]

    assert async_to_sync(requests)() == [OLD, NEW, NEW, NEW, OLD]


@on_replicated()
def test_tasks_of_a_request_share_what_they_write(paused: Pair) -> None:
    async def request() -> Any:
        return (await AsyncClient().get("/write_later?name=a,b")).json()

    assert sorted(async_to_sync(request)()["names"]) == ["a", "b", "old"]


@on_replicated()
def test_a_response_that_is_streamed_reads_what_the_view_has_written(paused: Pair) -> None:
    response = Client().get("/write_and_stream?name=new")
    assert b"".join(response) == b"oldnew"


# --- requests within a script --------------------------------------------------------------------


@pytest.mark.parametrize("middlewares", [[], MIDDLEWARE], ids=["bare", "middleware"])
@on_replicated("postgresql")
def test_a_script_stays_pinned_while_it_makes_requests(
    paused: Pair, settings: Any, middlewares: list[str]
) -> None:
    settings.MIDDLEWARE = middlewares
    Author.objects.create(name="new")
    for _ in range(2):
        assert Client().get("/read").json() == OLD
        assert reader() == PRIMARY
    catch_up(paused)
    assert reader() == REPLICA


@pytest.mark.parametrize("middlewares", [[], MIDDLEWARE], ids=["bare", "middleware"])
@on_replicated("postgresql")
def test_a_script_stays_pinned_while_it_makes_requests_in_coroutines(
    paused: Pair, settings: Any, middlewares: list[str]
) -> None:
    settings.MIDDLEWARE = middlewares

    async def script() -> str:
        await Author.objects.acreate(name="new")
        await AsyncClient().get("/read_later")
        return await sync_to_async(reader)()

    assert async_to_sync(script)() == PRIMARY


@on_replicated("postgresql")
def test_a_script_reads_what_its_requests_have_written(paused: Pair) -> None:
    Client().post("/write?name=new")
    assert reader() == PRIMARY


@on_replicated("postgresql")
def test_a_streamed_response_ends_its_request_when_it_has_been_read(paused: Pair) -> None:
    Author.objects.create(name="new")
    response = Client().get("/write_and_stream?name=newer")
    assert b"".join(response) == b"oldnewnewer"
    scope = pins.current()
    assert scope is not None
    assert not scope.is_request
    assert reader() == PRIMARY


@on_replicated("postgresql")
def test_a_pin_from_a_cookie_is_no_later_than_what_the_script_has_written(paused: Pair) -> None:
    user = Client()
    user.post("/write?name=new")
    Author.objects.create(name="newer")
    scope = pins.current()
    assert scope is not None
    last = scope.pins[PRIMARY]
    user.get("/read")
    scope = pins.current()
    assert scope is not None
    assert scope.pins[PRIMARY] is last


# --- the cookie --------------------------------------------------------------------------------


@on_replicated("postgresql")
def test_the_cookie_is_set_by_the_write_and_left_alone_by_reads(paused: Pair) -> None:
    user = Client()
    assert COOKIE not in user.get("/read").cookies
    cookie = user.post("/write?name=new", secure=True).cookies[COOKIE]
    assert (cookie["secure"], cookie["httponly"], cookie["samesite"]) == (True, True, "Lax")
    assert cookie["max-age"] == ReadYourWritesMiddleware.max_age
    assert cookie["path"] == "/"
    for _ in range(3):
        assert COOKIE not in user.get("/read").cookies
    catch_up(paused)
    response = user.get("/read")
    assert response.json() == CAUGHT_UP
    assert COOKIE not in response.cookies


@on_replicated("postgresql")
def test_a_slow_request_does_not_delete_the_cookie_of_a_later_write(paused: Pair) -> None:
    """Two tabs of one browser: the answer of the older request is the last to arrive."""
    user = Client()
    user.post("/write?name=new")
    slow = RequestFactory().get("/", headers={"Cookie": f"{COOKIE}={user.cookies[COOKIE].value}"})

    def view(request: HttpRequest) -> HttpResponse:
        catch_up(paused)
        assert user.get("/read").json() == CAUGHT_UP
        paused.replica.pause_replay()
        user.post("/write?name=newer")
        return HttpResponse()

    assert COOKIE not in ReadYourWritesMiddleware(view)(slow).cookies
    assert user.get("/read").json()["aliases"] == [PRIMARY]


@on_replicated("postgresql")
def test_where_the_replicas_are_known_to_have_caught_up_the_cookie_asks_nobody(
    paused: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = Client()
    user.post("/write?name=new")
    catch_up(paused)
    assert user.get("/read").json() == CAUGHT_UP
    # As a new request finds it, where connections do not persist.
    state_of(connections[REPLICA]).connected()
    monkeypatch.setattr(replicas, "shows", None)
    assert user.cookies[COOKIE].value
    assert user.get("/read").json() == CAUGHT_UP


@on_replicated("postgresql")
def test_the_cookie_goes_where_that_of_the_session_goes(paused: Pair, settings: Any) -> None:
    settings.SESSION_COOKIE_PATH, settings.SESSION_COOKIE_DOMAIN = "/shop", ".example.com"
    cookie = Client().post("/write?name=new").cookies[COOKIE]
    assert (cookie["path"], cookie["domain"]) == ("/shop", ".example.com")
    assert cookie["secure"] == ""


@on_replicated("postgresql")
def test_a_later_write_replaces_the_cookie(paused: Pair) -> None:
    user = Client()
    first = user.post("/write?name=new").cookies[COOKIE].value
    second = user.post("/write?name=newer").cookies[COOKIE].value
    assert first != second
    assert user.get("/read").json()["names"] == ["old", "new", "newer"]


@on_replicated("postgresql")
def test_the_position_is_asked_for_once(
    paused: Pair, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cache asks for its own part.
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False}
    asked: list[int] = []
    written = positions.written

    def counted(connection: Any) -> Any:
        asked.append(1)
        return written(connection)

    monkeypatch.setattr(positions, "written", counted)
    user = Client()
    user.get("/read")
    assert asked == []
    user.post("/write?name=new")
    for _ in range(3):
        assert user.get("/read").json() == NEW
    assert asked == [1]


def signed(value: Any) -> str:
    return signing.dumps(value, salt=middleware._SALT)


now_in_ms = int(time.time() * 1000)
USELESS = {
    "no signature": "abc",
    "nothing": "",
    "another key": signing.dumps(
        {PRIMARY: [f"wal:{1 << 60}", now_in_ms]}, key="stolen", salt=middleware._SALT
    ),
    "another salt": signing.dumps({PRIMARY: [f"wal:{1 << 60}", now_in_ms]}),
    "not ASCII": "é:ü:ö",
    "NUL": "\0:\0:\0",
}
OF_ANOTHER_VERSION = {
    "a list": [1, 2],
    "a text": "wal:5",
    "no pair": {PRIMARY: 5},
    "no position": {PRIMARY: ["wal", now_in_ms]},
    "no time": {PRIMARY: ["wal:5", "yesterday"]},
    "position of no text": {PRIMARY: [5, now_in_ms]},
    "an alias that is gone": {"former": [f"wal:{1 << 60}", now_in_ms]},
}


@on_replicated("postgresql")
@pytest.mark.parametrize("value", USELESS.values(), ids=list(USELESS))
def test_a_cookie_that_is_none_of_ours_is_ignored(paused: Pair, value: str) -> None:
    user = Client()
    user.cookies[COOKIE] = value
    assert user.get("/read").json() == OLD


@on_replicated("postgresql")
@pytest.mark.parametrize("value", OF_ANOTHER_VERSION.values(), ids=list(OF_ANOTHER_VERSION))
def test_a_cookie_of_another_version_is_ignored(paused: Pair, value: Any) -> None:
    user = Client()
    user.cookies[COOKIE] = signed(value)
    assert user.get("/read").json() == OLD


@on_replicated("postgresql")
def test_a_position_that_no_replica_will_reach_ends_with_the_cookie(
    paused: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those from before a failover or a restored backup may be."""
    user = Client()
    user.cookies[COOKIE] = signed({PRIMARY: [f"wal:{1 << 60}", now_in_ms]})
    for _ in range(3):
        assert user.get("/read").json()["aliases"] == [PRIMARY]
    assert user.cookies[COOKIE].value
    ends = time.time() + ReadYourWritesMiddleware.max_age
    monkeypatch.setattr(signing.time, "time", lambda: ends)
    assert user.get("/read").json()["aliases"] == [REPLICA]


@on_databases("postgresql", transaction=True)
def test_where_nothing_lags_there_is_no_cookie(
    using: str, fresh: None, site: None, settings: Any
) -> None:
    with alias_of(using, "twin"):
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"twin": {"PRIMARY": using}}}
        settings.DATABASE_ROUTERS = [ReplicaRouter(using)]
        response = Client().get("/write_and_read?name=new")
    assert response.json() == {"aliases": ["twin"], "names": ["new"]}
    assert COOKIE not in response.cookies


@on_databases("default", transaction=True)
def test_a_declared_lag_counts_over_requests(
    using: str, fresh: None, site: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]
    clocks = {name: getattr(time, name) for name in ("monotonic", "time")}
    for name, clock in clocks.items():
        monkeypatch.setattr(replicas.time, name, lambda clock=clock: clock() + passed[0])
    monkeypatch.setattr(
        "ormcache.routers.namespaces.identity",
        lambda connection: (connection.vendor, connection.alias),
    )
    with alias_of(using, "copy"):
        copy = {"PRIMARY": using, "MAX_LAG": 60}
        settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {"copy": copy}}
        settings.DATABASE_ROUTERS = [ReplicaRouter()]
        user, other = Client(), Client()
        user.post("/write?name=new")
        for seconds in (0.0, 59.0):
            passed[0] = seconds
            assert user.get("/read").json()["aliases"] == [using]
            assert other.get("/read").json()["aliases"] == ["copy"]
        passed[0] = 61.0
        assert user.get("/read").json()["aliases"] == ["copy"]


@on_replicated("postgresql")
def test_a_clock_that_is_ahead_makes_no_pin_longer(paused: Pair) -> None:
    (pin,) = (
        pin
        for _, pin in middleware._unpacked({PRIMARY: ["wal:5", int(time.time() * 1000) + 10**9]})
    )
    assert pin.at <= time.monotonic()


# --- real servers ------------------------------------------------------------------------------


@pytest.fixture
def serve(routed: Pair) -> Iterator[Callable[..., int]]:
    """Starts processes that serve the site; returns the port of each."""
    with contextlib.ExitStack() as running:

        def serve(middlewares: list[str]) -> int:
            databases = {"default": facts(PRIMARY), "replica": facts(REPLICA)}
            databases["replica"]["TEST"] = {"MIRROR": "default"}
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.multidb.site"],
                env={
                    **os.environ,
                    "ORMCACHE_TEST_SITE_DATABASES": json.dumps(databases),
                    "ORMCACHE_TEST_SITE_MIDDLEWARE": json.dumps(middlewares),
                },
                stdout=subprocess.PIPE,
                text=True,
            )
            running.callback(process.wait)
            running.callback(process.kill)
            assert process.stdout is not None
            running.callback(process.stdout.close)
            return int(process.stdout.readline())

        yield serve


def facts(alias: str) -> dict[str, Any]:
    used = connections[alias].settings_dict
    return {name: used[name] for name in ("ENGINE", "HOST", "PORT", "USER", "NAME")}


class Browser:
    """As much of a browser as keeps cookies."""

    def __init__(self) -> None:
        self.cookies: dict[str, str] = {}

    def get(self, port: int, path: str) -> Any:
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        connection.request("GET", path, headers={"Cookie": cookies} if cookies else {})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status in (200, 204), body
        for name, value in response.getheaders():
            if name == "Set-Cookie":
                key, _, rest = value.partition("=")
                content = rest.partition(";")[0].strip('"')
                self.cookies.pop(key, None)
                if content:
                    self.cookies[key] = content
        return json.loads(body) if body.startswith(b"{") else body.decode()


IN_PROCESS = {"primary": "default", "replica": "replica"}


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer in the words of the processes, where the primary is "default"."""
    return {**answer, "aliases": [IN_PROCESS[alias] for alias in answer["aliases"]]}


@on_replicated()
def test_the_next_request_may_go_to_another_process(
    routed: Pair, serve: Callable[..., int]
) -> None:
    one, other = serve(MIDDLEWARE), serve(MIDDLEWARE)
    user, bystander = Browser(), Browser()
    assert user.get(one, "/read") == told(OLD)
    routed.replica.pause_replay()
    user.get(one, "/write?name=new")
    for port in (one, other, one):
        assert user.get(port, "/read") == told(NEW)
        assert bystander.get(port, "/read") == told(OLD)
    catch_up(routed)
    assert user.get(other, "/read") == told(CAUGHT_UP)


@on_replicated()
def test_a_request_to_a_wsgi_server_reads_what_it_writes_without_the_middleware(
    routed: Pair, serve: Callable[..., int]
) -> None:
    port = serve([])
    user = Browser()
    routed.replica.pause_replay()
    assert user.get(port, "/write_and_read?name=new") == told(NEW)
    assert user.get(port, "/write_and_stream?name=newer") == "oldnewnewer"
    assert user.get(port, "/read") == told(OLD)
    catch_up(routed)
    assert user.get(port, "/read") == {**told(OLD), "names": ["old", "new", "newer"]}


@on_replicated()
@pytest.mark.parametrize("middlewares", [[], MIDDLEWARE], ids=["bare", "middleware"])
def test_concurrent_requests_to_an_asgi_application_are_pinned_each_for_itself(
    routed: Pair, site: None, settings: Any, middlewares: list[str]
) -> None:
    settings.MIDDLEWARE = middlewares
    # Now it is known to answer: of several threads, one would try and the others not wait.
    assert reader() == REPLICA
    routed.replica.pause_replay()

    async def request(application: Any, path: str, query: str = "") -> Any:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": query.encode(),
            "headers": [],
        }
        communicator = ApplicationCommunicator(application, scope)
        await communicator.send_input({"type": "http.request"})
        start = await communicator.receive_output(20)
        assert start["status"] == 200
        body = await communicator.receive_output(20)
        await communicator.wait(20)
        return json.loads(body["body"])

    async def requests() -> list[Any]:
        application = ASGIHandler()
        found = await asyncio.gather(
            request(application, "/write_later", "name=new"),
            *(request(application, path) for path in ("/read", "/read_later") * 3),
        )
        return [*found, await request(application, "/read")]

    written, *others = asyncio.run(requests())
    if middlewares:
        assert written == NEW
    assert others == [OLD] * 7
    assert Author.objects.using(PRIMARY).count() == 2
    assert pins.current() is None
