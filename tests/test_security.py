"""A cache that is corrupt, or that somebody else writes to, and users who choose names and values.

Damage is a miss: the rows are those of the database, nothing is raised, and no code is run.
"""

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from django.core.cache import caches
from django.db import connections
from django.db.models import Max, Min
from django.db.models.functions import Upper
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import ormcache
from ormcache import codec, keys
from ormcache.exceptions import CacheError, Corrupt
from ormcache.reasons import Reason
from ormcache.routers.namespaces import namespace
from ormcache.stores import strict_store
from ormcache.stores.standard import StandardStore
from tests.factories import AuthorFactory, BookFactory
from tests.factories import using as factories_using
from tests.interleaving import SECONDS, route_of, store_of
from tests.marks import on_caches, on_databases, on_pairs
from tests.models import Author, Book
from tests.watching import Watch, wait_for_quarantine

# --- entries by the back door ----------------------------------------------------------------


class Vault:
    """The entries of one cache, as somebody sees them who can read and write it."""

    def __init__(self, using: str, cache: str) -> None:
        self.using, self.cache = using, cache
        self.is_redis = cache in ("redis", "django_redis", "django_valkey")

    @property
    def client(self) -> Any:
        return store_of(self.using)._channels._idle[0]  # type: ignore[attr-defined]

    def call(self, *command: bytes) -> Any:
        from ormcache.stores.channels import pack

        return self.client.call(pack(*command))

    def names(self) -> set[Any]:
        """The names of all entries."""
        if self.is_redis:
            return set(self.call(b"KEYS", b"ormcache:*:e:*"))
        if self.cache == "locmem":
            keys = (key.split(":", 2)[2] for key in caches[self.cache]._cache)  # type: ignore[attr-defined]
            return {key for key in keys if ":r:" not in key}
        raise NotImplementedError

    def get(self, name: Any) -> tuple[Any, bytes]:
        """The vector and the payload."""
        if self.is_redis:
            head, _, payload = self.call(b"GET", name).partition(b"|")
            return head, payload
        found: tuple[Any, bytes] = caches[self.cache].get(name)
        return found

    def put(self, name: Any, vector: Any, payload: Any) -> None:
        if self.is_redis:
            # What the client has still to send would take its place.
            store_of(self.using)._channels.flush()
            self.call(b"SET", name, vector + b"|" + payload)
        else:
            caches[self.cache].set(name, (vector, payload))


class Attacked:
    """Two questions whose answers are cached, and where."""

    def __init__(self, using: str, cache: str, watch: Watch) -> None:
        self.using, self.watch = using, watch
        self.vault = Vault(using, cache)
        with factories_using(using):
            self.authors = [AuthorFactory(name=name) for name in ("one", "other")]
        before = set() if cache == "locmem" else self.vault.names()
        self.entries = []
        for number in range(2):
            watch.warm(lambda number=number: self.ask(number))
            (new,) = self.vault.names() - before - {name for name, *_ in self.entries}
            self.entries.append((new, *self.vault.get(new)))

    def ask(self, number: int = 0) -> dict[str, Any]:
        rows = Author.objects.using(self.using).filter(pk=self.authors[number].pk)
        return rows.values("pk", "name").get()

    def expected(self, number: int = 0) -> dict[str, Any]:
        author = self.authors[number]
        return {"pk": author.pk, "name": author.name}

    def corrupt(self) -> int:
        counts = ormcache.statistics()[self.using].get("tests_author", {})
        return int(counts.get("corrupt", 0))

    def plant(self, payload: Any) -> None:
        """Replace the first entry, under its own name and vector."""
        name, vector, _ = self.entries[0]
        self.vault.put(name, vector, payload)

    def is_harmless(self, payload: Any) -> None:
        """What was planted is counted and replaced, and the database is asked."""
        self.plant(payload)
        before = self.corrupt()
        assert self.watch.call(self.ask) == (self.expected(), ["miss"])
        assert self.corrupt() == before + 1
        assert self.watch.call(self.ask) == (self.expected(), ["hit"])


@pytest.fixture
def attacked(cached: Watch, using: str, cache: str, settings: Any) -> Attacked:
    if cache == "locmem":
        caches[cache].clear()
    # What becomes of these registers shall be of no concern to other tests.
    prefix = f"attacked{os.urandom(4).hex()}"
    settings.ORMCACHE = {**settings.ORMCACHE, "KEY_PREFIX": prefix}
    wait_for_quarantine(using)
    return Attacked(using, cache, cached)


on_each = on_pairs(("default", "locmem"), ("postgresql", "redis"), transaction=True)
many = hypothesis_settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Bomb:
    def __reduce__(self) -> Any:
        return (sys.exit, ("the pickle was run",))


@on_each
def test_random_bytes_in_place_of_an_answer_are_a_miss(attacked: Attacked) -> None:
    @many
    @given(st.binary(max_size=300))
    def check(payload: bytes) -> None:
        attacked.is_harmless(payload)

    check()


@on_each
def test_every_truncated_answer_is_a_miss(attacked: Attacked) -> None:
    _, _, payload = attacked.entries[0]
    for length in range(len(payload)):
        attacked.is_harmless(payload[:length])


@on_each
def test_every_flipped_bit_of_an_answer_is_a_miss(attacked: Attacked) -> None:
    _, _, payload = attacked.entries[0]
    for bit in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        attacked.is_harmless(bytes(changed))


@on_each
def test_bytes_that_were_taken_out_doubled_or_put_in_are_a_miss(attacked: Attacked) -> None:
    _, _, payload = attacked.entries[0]

    @many
    @given(
        st.integers(0, len(payload)),
        st.integers(0, len(payload)),
        st.binary(min_size=1, max_size=9),
    )
    def check(start: int, end: int, other: bytes) -> None:
        changed = payload[:start] + other + payload[end:]
        if changed != payload:
            attacked.is_harmless(changed)

    check()


def narrow_and_wide(rows: list[tuple[Any, ...]]) -> Iterator[bytes]:
    """Well-formed answers with a column less and a column more."""
    for changed in ([row[:-1] for row in rows], [(*row, 1) for row in rows]):
        yield codec.seal(codec.encode(codec.Result(changed, "list")))


@on_each
def test_rows_that_are_too_narrow_or_too_wide_are_a_miss(attacked: Attacked) -> None:
    for payload in narrow_and_wide([(attacked.authors[0].pk, "one")]):
        attacked.is_harmless(payload)


@on_databases("default", transaction=True)
@on_caches("locmem")
@pytest.mark.parametrize(
    "question",
    [
        # Compiled each time, as neither has a shape.
        lambda: list(Author.objects.annotate(upper=Upper("name"))),
        lambda: Author.objects.annotate(upper=Upper("name")).aggregate(Max("upper"), Min("upper")),
        # Of a known shape.
        lambda: list(Author.objects.all()),
        lambda: list(Author.objects.values_list("pk", "name").distinct().order_by("born")),
        lambda: Author.objects.aggregate(Max("name"), Min("name")),
        lambda: list(Book.objects.select_related("author")),
    ],
)
def test_the_width_of_rows_is_known_of_every_kind_of_question(
    cached: Watch, cache: str, using: str, question: Callable[[], Any]
) -> None:
    caches[cache].clear()
    BookFactory(author__name="one")
    # Twice: the second time, its shape is known if it has any.
    right = cached.warm(question)
    vault = Vault(using, cache)
    (name,) = vault.names()
    vector, payload = vault.get(name)
    rows = codec.decode(codec.unseal(payload)).rows
    for planted in narrow_and_wide(rows):
        vault.put(name, vector, planted)
        assert cached.call(question) == (right, ["miss"])
        assert cached.call(question) == (right, ["hit"])


BOMBS = {
    "arrays of 4 GB": b"\xdd\xff\xff\xff\xff" * 100,
    "arrays that promise a million each": b"\xdd\x00\x0f\x42\x40" * 200_000,
    "maps of 4 GB": b"\xdf\xff\xff\xff\xff" * 100,
    "bytes of 4 GB": b"\x93\xa4list\x91\xa0\x91\x91\xc6\xff\xff\xff\xff",
    "an extension of 4 GB": b"\x93\xa4list\x91\xa0\x91\x91\xc9\xff\xff\xff\xff\x01",
    "nested without end": b"\x91" * 1_000_000,
    "an unknown extension": msgpack.packb(["list", [""], [[msgpack.ExtType(99, b"x")]]]),
    "an enormous decimal": msgpack.packb(["list", ["v"], [[[7, 2**60]]]]),
    "a pickle": pickle.dumps(Bomb()),
    "a pickle in a column": msgpack.packb(["list", ["p"], [[pickle.dumps(Bomb())]]]),
}


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("name", BOMBS)
@on_each
def test_bombs_are_a_miss_and_take_no_memory(
    attacked: Attacked, name: str, is_sealed: bool
) -> None:
    """Also with a good checksum, which is no secret."""
    bomb = codec.seal(BOMBS[name]) if is_sealed else BOMBS[name]
    attacked.plant(bomb)
    tracemalloc.start()
    try:
        assert attacked.ask() == attacked.expected()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Arrays of null pointers are set aside, one inside the other, and not touched.
    assert peak < 30_000_000 or "promise" in name
    attacked.is_harmless(bomb)


@on_each
def test_the_answer_to_another_question_is_a_miss(attacked: Attacked) -> None:
    """Its head names the question, and the two are worth the same: one table, one vector."""
    (name, vector, payload), (other_name, other_vector, other_payload) = attacked.entries
    attacked.vault.put(name, other_vector, other_payload)
    attacked.vault.put(other_name, vector, payload)
    for number in range(2):
        assert attacked.watch.call(lambda number=number: attacked.ask(number)) == (
            attacked.expected(number),
            ["miss"],
        )


@on_each
def test_an_answer_of_the_past_is_a_miss(attacked: Attacked) -> None:
    """Who has kept an entry, and puts it back after a write, has kept its vector with it."""
    name, vector, payload = attacked.entries[0]
    rows = Author.objects.using(attacked.using).filter(pk=attacked.authors[0].pk)
    rows.update(name="new")
    attacked.vault.put(name, vector, payload)
    assert attacked.watch.warm(attacked.ask)["name"] == "new"


# --- registers by the back door --------------------------------------------------------------


def _as_text(vault: Vault, key: bytes) -> None:
    vault.call(b"DEL", key)
    vault.call(b"SET", key, b"c:1")


def _as_list(vault: Vault, key: bytes) -> None:
    vault.call(b"DEL", key)
    vault.call(b"RPUSH", key, b"n")


def _with(**fields: bytes) -> Callable[[Vault, bytes], None]:
    def damage(vault: Vault, key: bytes) -> None:
        for field, value in fields.items():
            vault.call(b"HSET", key, field.encode(), value)

    return damage


DAMAGES: dict[str, Callable[[Vault, bytes], None]] = {
    "text": _as_text,
    "a list": _as_list,
    "no UTF-8": _with(n=b"\xff\xfe\x00\r\n"),
    "a nonce with signs of ours": _with(n=b"|;:|"),
    "an enormous nonce": _with(n=b"n" * 1_000_000),
    "no counter": _with(x=b"many"),
    "no intents": _with(d=b"\xff=,=,Q=soon,=="),
    "no birth": _with(b=b"long ago", l=b"for ever"),
    "neither birth nor intents": _with(b=b"", l=b"", d=b""),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("table", ["*", "tests_author"])
@on_pairs(("postgresql", "redis"), transaction=True)
def test_damaged_registers_cost_a_lease_and_neither_reads_nor_writes(
    attacked: Attacked, name: str, table: str
) -> None:
    vault, space = attacked.vault, route_of(attacked.using).namespace
    (key,) = vault.call(
        b"KEYS",
        f"ormcache:*{{{space}}}*:r:".encode() + table.encode("ascii").replace(b"*", b"\\*"),
    )
    DAMAGES[name](vault, key)
    assert attacked.ask() == attacked.expected()
    DAMAGES[name](vault, key)
    rows = Author.objects.using(attacked.using)
    rows.filter(pk=attacked.authors[0].pk).update(name="new")
    attacked.authors[0].name = "new"
    assert attacked.ask() == attacked.expected()
    # A table that has no register yet, which is made by what "*" remembers.
    assert not rows.filter(profile__isnull=False).exists()
    wait_for_quarantine(attacked.using)
    attacked.ask()
    assert attacked.ask() == attacked.expected()
    rows.filter(pk=attacked.authors[0].pk).update(name="newer")
    attacked.authors[0].name = "newer"
    assert attacked.ask() == attacked.expected()


@pytest.mark.parametrize("damage", [{"n": b"a|b"}, {"n": b"|"}, {"x": b"1|2"}], ids=repr)
@pytest.mark.parametrize("table", ["*", "tests_author"])
@on_pairs(("postgresql", "redis"), transaction=True)
def test_the_sign_that_ends_a_vector_costs_a_lease_where_it_is_part_of_one(
    attacked: Attacked, table: str, damage: dict[str, bytes]
) -> None:
    store, space = store_of(attacked.using), route_of(attacked.using).namespace
    (key,) = attacked.vault.call(
        b"KEYS",
        f"ormcache:*{{{space}}}*:r:".encode() + table.encode().replace(b"*", b"\\*"),
    )
    intent = "of another process"
    _with(**damage)(attacked.vault, key)
    assert attacked.watch.call(attacked.ask) == (attacked.expected(), [str(Reason.BUSY)])
    # Whoever announces something meanwhile is not forgotten when the lease is over.
    store.arm(space, intent, ["tests_author"])
    assert store.read(space, "e" * 40, ["tests_author"]).reason is Reason.BUSY
    store.finish(space, intent, ["tests_author"])
    deadline = time.monotonic() + SECONDS
    while store.read(space, "e" * 40, ["tests_author"]).vector is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    attacked.watch.warm(attacked.ask)
    assert b"|" not in b"".join(attacked.vault.call(b"HVALS", key))


# --- a server that is none -------------------------------------------------------------------

_HEAD = b"e" * 40
ODD_ANSWERS = {
    "a number": b":1",
    "nothing": b"$-1",
    "no list": b"*-1",
    "an empty list": b"*0",
    "a list of a number": b"*1\r\n:5",
    "a list of nothing": b"*1\r\n$-1",
    "two of three": b"*2\r\n$0\r\n\r\n$4\r\nbusy",
    "an unknown kind": b"*3\r\n$0\r\n\r\n$1\r\nz\r\n:4",
    "a kind that is a list": b"*3\r\n$0\r\n\r\n*0\r\n:4",
    "no time": b"*3\r\n$0\r\n\r\n$4\r\nbusy\r\n$1\r\nx",
    "a kind with a head": b"*3\r\n$1\r\na\r\n$4\r\nbusy\r\n:4",
    "OK": b"+OK",
    "no head": b"$5\r\nab|cd",
    "no end of a head": b"$5\r\nabcde",
    "another head": b"*1\r\n$44\r\n" + b"f" * 40 + b";n:|",
    "a head without registers": b"$41\r\n" + _HEAD + b"|",
    "a head without anything": b"*1\r\n$41\r\n" + _HEAD + b"|",
    "an empty head": b"*1\r\n$0\r\n",
    "what is no Redis": b"HTTP/1.1 400 Bad Request",
}


class OddServer:
    """Speaks as Redis does, but for the answers to scripts and to those commands it is told of."""

    def __init__(self, answer: bytes, commands: tuple[bytes, ...] = (b"EVALSHA",)) -> None:
        self.answer, self.commands = answer + b"\r\n", commands
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client, client.makefile("rb") as stream:
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    words.append(stream.read(int(stream.readline()[1:])))
                    stream.read(2)
                client.sendall(self._answer_to(words[0]))

    def _answer_to(self, command: bytes) -> bytes:
        if command in self.commands:
            return self.answer
        if command == b"INFO":
            lines = [b"redis_version:7.0.15", b"role:master"]
            lines += [b"run_id:" + b"a" * 40, b"master_replid:" + b"b" * 40]
            text = b"\r\n".join(lines)
            return b"$%d\r\n%s\r\n" % (len(text), text)
        if command == b"SCRIPT":
            return b"$40\r\n%s\r\n" % (b"c" * 40)
        if command == b"EVALSHA":
            return b":1\r\n"
        if command == b"HELLO":
            return b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
        return b"-ERR unknown command\r\n" if command == b"CLIENT" else b"+OK\r\n"


@pytest.fixture
def odd_server(request: pytest.FixtureRequest, settings: Any) -> Iterator[OddServer]:
    pytest.importorskip("redis")
    server = OddServer(*request.param)
    location = f"redis://127.0.0.1:{server.port}/0"
    backend = "django.core.cache.backends.redis.RedisCache"
    odd = {"BACKEND": backend, "LOCATION": location}
    settings.CACHES = {**settings.CACHES, "odd": odd}
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "odd", "ON_CACHE_FAILURE": "open"}
    yield server
    server.close()


@pytest.mark.parametrize(
    "odd_server", [(answer,) for answer in ODD_ANSWERS.values()], ids=ODD_ANSWERS, indirect=True
)
@on_databases("default", transaction=True)
def test_a_server_with_odd_answers_is_one_that_cannot_be_reached(
    odd_server: OddServer, using: str
) -> None:
    with Watch(using) as watch:
        assert watch.call(Author.objects.count) == (0, [str(Reason.CACHE_UNREACHABLE)])
        assert not store_of(using)._channels._idle, "the socket is not used again"  # type: ignore[attr-defined]
        Author.objects.create(name="a")
        assert Author.objects.count() == 1
        ormcache.flush(using=using)
    store: Any = store_of(using)
    for ask in (
        lambda: store.read("space", "e" * 40, ()),
        store.start_read("space", "e" * 40, ()),
    ):
        with pytest.raises(CacheError):
            ask()
    assert not store._channels._idle


@pytest.mark.parametrize("odd_server", [(b"+OK",)], indirect=True)
@on_databases("default", transaction=True)
def test_a_change_that_is_not_confirmed_was_not_made(odd_server: OddServer, using: str) -> None:
    store: Any = store_of(using)
    for change in (
        lambda: store.arm("space", "1", ["a"]),
        lambda: store.bump("space", ["a"]),
        lambda: store.settle("space", ["a"], 1, 2, 3),
    ):
        with pytest.raises(CacheError, match="does not say"):
            change()
    assert not store._channels._idle


@pytest.mark.parametrize(
    "answer", [b":1", b"*0", b"*1\r\n:1", b"*2\r\n+a\r\n:1", b"+OK"], ids=repr
)
@pytest.mark.parametrize("odd_server", [(b"",)], ids=[""], indirect=True)
@on_databases("default", transaction=True)
def test_whatever_else_is_answered_oddly_is_an_error_of_the_cache(
    odd_server: OddServer, using: str, answer: bytes
) -> None:
    odd_server.answer = answer + b"\r\n"
    odd_server.commands = (b"TIME", b"SCAN", b"GET", b"HGETALL")
    store: Any = store_of(using)
    questions: list[Callable[[], Any]] = [
        store.moment,
        lambda: list(store.noted("space")),
    ]
    if not answer.startswith((b"*0", b"*2")):
        # Those are hashes.
        questions.append(lambda: store.status("space"))
    if answer != b"+OK":
        # That may be a note, of which its signature tells that it is none.
        questions.append(lambda: store.note_of("space", "entry"))
    for ask in questions:
        with pytest.raises(CacheError):
            ask()
    odd_server.commands = (b"INFO",)
    store.close()
    with pytest.raises(CacheError):
        store.read("space", "e" * 40, ())


@on_caches("memcached", "filebased")
@on_databases("default", transaction=True)
def test_anything_in_a_plain_cache_is_a_miss(cached: Watch, using: str, cache: str) -> None:
    """Its own serializer is Django's: what that runs, it runs before ormcache sees anything."""
    author = AuthorFactory(name="one")

    def name() -> str:
        return Author.objects.get(pk=author.pk).name

    store = store_of(using)
    found: list[str] = []
    original = store.fill

    def fill(space: str, entry: str, *rest: Any) -> None:
        found.append(f"ormcache:{space}:e:{entry}")
        original(space, entry, *rest)

    store.fill = fill  # type: ignore[method-assign]
    try:
        cached.warm(name)
    finally:
        del store.fill  # type: ignore[attr-defined]
    (key,) = found
    vector, payload = caches[cache].get(key)
    for value in (
        b"",
        None,
        7,
        (),
        (vector,),
        (vector, None),
        (vector, "text"),
        (vector, [payload]),
    ):
        caches[cache].set(key, value)
        assert name() == "one"
    for length in range(len(payload)):
        caches[cache].set(key, (vector, payload[:length]))
        assert name() == "one"


# --- names and values of users ---------------------------------------------------------------

AWKWARD = [
    "\r\nSET x 1\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "a b",
    "\x00",
    "\x7f",
    "é",
    "\ud800",
    "{x}",
    "%s",
    "'; DROP TABLE tests_author; --",
    "|",
    ";",
    ":",
    "r:*",
    "*",
    "x" * 90,
    "",
    "𐍈",
    "a\nb",
    "Q",
    "=1",
]


@pytest.mark.parametrize("value", AWKWARD, ids=ascii)
@on_each
def test_no_parameter_can_be_more_than_a_parameter(cached: Watch, using: str, value: str) -> None:
    if "\ud800" in value or (using == "postgresql" and "\x00" in value):
        pytest.skip("the database takes no such text")
    with factories_using(using):
        AuthorFactory(name="bystander")

    def named() -> list[str]:
        return list(Author.objects.using(using).filter(name=value).values_list("name", flat=True))

    assert cached.warm(lambda: Author.objects.using(using).count()) == 1
    assert cached.warm(named) == []
    assert cached.hit(lambda: Author.objects.using(using).count()) == 1
    Author.objects.using(using).create(name=value)
    assert cached.warm(named) == [value]
    assert cached.warm(lambda: Author.objects.using(using).count()) == 2


values = st.one_of(
    st.text(st.characters(), max_size=8),
    st.integers(),
    st.floats(),
    st.binary(max_size=8),
    st.booleans(),
    st.none(),
    st.sampled_from(AWKWARD),
)
lists = st.lists(values, max_size=4)


@hypothesis_settings(deadline=None, max_examples=500)
@given(lists, lists, st.text(st.characters(), max_size=8), st.text(st.characters(), max_size=8))
def test_two_questions_share_a_key_only_if_they_are_one(
    one: list[Any], other: list[Any], sql: str, other_sql: str
) -> None:
    def key(sql: str, params: list[Any]) -> str:
        return keys.entry_key(("default", "path"), sql, params)

    are_one = sql == other_sql and repr(one) == repr(other)
    assert (key(sql, one) == key(other_sql, other)) is are_one
    assert set(key(sql, one)) <= set("0123456789abcdef")
    # What is moved from one part to the next makes another question.
    if sql:
        assert key(sql[:-1], [sql[-1], *one]) != key(sql, one)


@pytest.mark.parametrize(
    "name", [name for name in AWKWARD if not {*name} & {*"\x00\ud800"}], ids=ascii
)
def test_no_name_of_a_database_is_more_than_a_part_of_a_key(name: str) -> None:
    connection = connections["default"].copy()
    connection.settings_dict = {**connection.settings_dict, "NAME": name or "x"}
    space = namespace(connection, "prefix")
    assert space.startswith("prefix-")
    assert set(space) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@pytest.fixture
def stores(settings: Any) -> Iterator[dict[str, Any]]:
    settings.ORMCACHE = {**settings.ORMCACHE, "LEASE": 0.05}
    made = {name: strict_store(name) for name in ("locmem", "redis") if name in settings.CACHES}
    if "memcached" in settings.CACHES:
        made["memcached"] = StandardStore("memcached")
    yield made


TABLES = [name for name in AWKWARD if name and "\ud800" not in name]
# Longer than a key of Memcached may be, the second as MariaDB lets it be.
TABLES += ["x" * 300, "ж" * 64]


@pytest.mark.parametrize("table", TABLES, ids=ascii)
def test_no_name_of_a_table_is_the_register_of_another(stores: dict[str, Any], table: str) -> None:
    space = f"security-{os.urandom(4).hex()}"
    for name, store in stores.items():
        tables = ["bystander", table] if table != "*" else ["bystander"]
        while store.read(space, "e" * 40, tables).vector is None:
            continue
        vector = store.read(space, "e" * 40, ["bystander"]).vector
        store.fill(space, "e" * 40, vector, b"answer", 60)
        assert store.read(space, "e" * 40, ["bystander"]).entry == b"answer", name
        if table == "*":
            continue
        store.arm(space, "1", [table])
        assert store.read(space, "e" * 40, [table]).vector is None, name
        store.finish(space, "1", [table])
        assert store.read(space, "e" * 40, ["bystander"]).entry == b"answer", name


@pytest.mark.parametrize("prefix", ["a b", "\r\n", "{x}", "é", "a:b", "*"], ids=ascii)
def test_a_prefix_that_is_no_part_of_a_key_is_refused(settings: Any, prefix: str) -> None:
    from ormcache.checks import check_settings

    settings.ORMCACHE = {**settings.ORMCACHE, "KEY_PREFIX": prefix}
    assert "ormcache.E002" in [message.id for message in check_settings()]


def test_bytes_with_a_wrong_checksum_and_what_is_no_bytes_are_refused() -> None:
    for wrong in (None, "text", 7, b"", b"abc", b"\x00\x00\x00\x01", bytearray(codec.seal(b"x"))):
        with pytest.raises(Corrupt):
            codec.unseal(wrong)  # type: ignore[arg-type]
    assert codec.unseal(codec.seal(b"x")) == b"x"
