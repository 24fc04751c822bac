"""``manage.py ormcache``."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections, models
from django.test.utils import isolate_apps

import ormcache
from ormcache import counters, fence_rows
from ormcache.conf import Settings
from ormcache.exceptions import CacheError
from ormcache.management.commands.ormcache import Command
from ormcache.stores import LocMemStore, breaker_for
from ormcache.stores.redis import PROTOCOL, SCRIPTS
from tests import backdoor, servers
from tests.interleaving import route_of, store_of
from tests.marks import on_caches, on_databases
from tests.models import Author, Book, Restaurant
from tests.servers import HOST, RedisServer
from tests.watching import Watch


def run(*arguments: str, **options: Any) -> str:
    output = io.StringIO()
    call_command("ormcache", *arguments, stdout=output, no_color=True, **options)
    return output.getvalue()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fail(*args: Any) -> None:
        raise CacheError("out of order")

    for method in ("read", "arm", "finish", "bump", "status"):
        monkeypatch.setattr(LocMemStore, method, fail)
    yield
    breaker_for("locmem").succeeded()


def test_a_subcommand_is_required() -> None:
    with pytest.raises(CommandError, match="required"):
        run()


@pytest.mark.parametrize(
    "option",
    [
        ["--settings", "tests.settings"],
        ["--pythonpath", "/nowhere"],
        ["--verbosity", "0"],
        ["-v", "0"],
        ["--traceback"],
        ["--no-color"],
        ["--force-color"],
        ["--skip-checks"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "subcommand", [["flush"], ["explain", "Book.objects"], ["status"], ["audit"], ["protocol"]]
)
def test_options_of_django_may_stand_on_either_side_of_a_subcommand(
    subcommand: list[str], option: list[str]
) -> None:
    parser = Command().create_parser("manage.py", "ormcache")
    usual = vars(parser.parse_args(subcommand))
    before = vars(parser.parse_args([*option, *subcommand]))
    behind = vars(parser.parse_args([*subcommand, *option]))
    assert before == behind != usual
    assert before.keys() == usual.keys()


@pytest.mark.parametrize(
    "subcommand", [["flush"], ["explain", "Book.objects"], ["status"], ["audit"], ["protocol"]]
)
def test_an_unknown_database_is_named_with_those_that_are_known(subcommand: list[str]) -> None:
    with pytest.raises(CommandError, match=r"no database 'nowhere'\. Known aliases: default"):
        run(*subcommand, "--database", "nowhere")


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "subcommand", [["flush"], ["explain", "Book.objects"], ["status"], ["audit"], ["protocol"]]
)
@pytest.mark.parametrize(
    "wrong, message",
    [({"TIMEOUT": "1h"}, "a number of seconds"), ({"CACHE_ALIAS": "nowhere"}, "Known aliases: ")],
    ids=str,
)
def test_wrong_settings_are_an_error_without_a_traceback(
    settings: Any, using: str, subcommand: list[str], wrong: dict[str, Any], message: str
) -> None:
    settings.ORMCACHE = wrong
    with pytest.raises(CommandError, match=message):
        run(*subcommand)


def nowhere() -> dict[str, Any]:
    return {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": f"127.0.0.1:{servers.free_port()}",
    }


# --- flush -----------------------------------------------------------------------------------


@on_databases(transaction=True)
@on_caches("locmem", "redis")
def test_flush_makes_everything_of_a_database_invalid(
    cached: Watch, using: str, cache: str
) -> None:
    cached.warm(Author.objects.using(using).count)
    cached.warm(Book.objects.using(using).count)
    assert run("flush", "--database", using) == f"Invalidated everything of {using}.\n"
    cached.miss(Author.objects.using(using).count)
    cached.miss(Book.objects.using(using).count)


@on_databases("postgresql", transaction=True)
def test_flush_leaves_other_databases_alone(cached: Watch, using: str) -> None:
    ormcache.flush(using="default")
    cached.warm(Author.objects.using("default").count)
    run("flush", "--database", using)
    cached.hit(Author.objects.using("default").count)


@on_databases("postgresql", transaction=True)
def test_flush_without_a_database_is_for_all(cached: Watch, using: str) -> None:
    ormcache.flush(using="default")
    for alias in ("default", using):
        cached.warm(Author.objects.using(alias).count)
    assert run("flush") == "Invalidated everything of all databases.\n"
    for alias in ("default", using):
        cached.miss(Author.objects.using(alias).count)


@on_databases("default", transaction=True)
@pytest.mark.parametrize("name", ["tests.Author", "tests_author", "tests.author"])
def test_flush_of_a_model_or_table_leaves_others_alone(cached: Watch, name: str) -> None:
    cached.warm(Author.objects.count)
    cached.warm(Book.objects.count)
    assert run("flush", name, "--database", "default") == f"Invalidated {name} of default.\n"
    cached.miss(Author.objects.count)
    cached.hit(Book.objects.count)


@on_databases("default", transaction=True)
def test_flush_takes_several_names(cached: Watch) -> None:
    for model in (Author, Book, Restaurant):
        cached.warm(model.objects.count)
    run("flush", "tests.Author", "tests.Place", "--database", "default")
    cached.miss(Author.objects.count)
    cached.miss(Restaurant.objects.count)
    cached.hit(Book.objects.count)


@on_databases("default", transaction=True)
def test_flush_of_a_model_that_an_app_does_not_have_is_an_error(cached: Watch) -> None:
    with cached.expect(), pytest.raises(CommandError, match="Athor"):
        run("flush", "tests.Athor", "--database", "default")
    assert cached.invalidated == []


@on_databases("default", transaction=True)
def test_flush_warns_of_a_name_that_no_table_has(cached: Watch, settings: Any) -> None:
    """A table that ormcache has not met may have it all the same."""
    warnings = io.StringIO()
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "filebased"}
    names = ("Book", "tests_author", "tests.Tag", "warehouse.stock", "stock")
    assert run("flush", *names, "--database", "default", stderr=warnings) == (
        f"Invalidated {', '.join(names)} of default.\n"
    )
    assert warnings.getvalue() == (
        "No table is known as 'Book' or 'warehouse.stock' or 'stock'. If a model is meant, write "
        '"app.Model", with the label of an installed app.\n'
    )


@on_databases("postgresql", transaction=True)
@on_caches("redis")
@pytest.mark.parametrize("name", ["tests.Author", "tests_author", "public.tests_author"])
def test_flush_warns_of_nothing_that_is_known(
    cached: Watch, using: str, cache: str, name: str
) -> None:
    warnings = io.StringIO()
    run("flush", name, "--database", using, stderr=warnings)
    assert warnings.getvalue() == ""


@on_databases("default", transaction=True)
@pytest.mark.parametrize("name", ["", " "])
def test_flush_of_an_empty_name_is_an_error(cached: Watch, name: str) -> None:
    with cached.expect(), pytest.raises(CommandError, match="A name is empty"):
        run("flush", "tests.Author", name, "--database", "default")
    assert cached.invalidated == []


@on_databases("default", transaction=True)
@on_caches("locmem")
def test_flush_says_that_the_memory_of_other_processes_is_as_before(
    cached: Watch, using: str, cache: str
) -> None:
    warnings = io.StringIO()
    run("flush", "--database", using, stderr=warnings)
    assert warnings.getvalue() == (
        "The cache 'locmem' is in the memory of each process, and only that of this command was "
        "emptied. Restart the servers that are running, or use a cache that they share.\n"
    )


@on_databases("postgresql", transaction=True)
def test_flush_of_all_says_of_which_databases_nothing_is_cached(
    cached: Watch, settings: Any, using: str
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {using: {"CACHE_ALIAS": "dummy"}}}
    done, nothing = run("flush", stderr=io.StringIO()).splitlines()
    others = [alias for alias in connections if alias != using]
    assert done == f"Invalidated everything of {', '.join(others)}."
    assert nothing == f"Nothing is cached of {using}: the cache 'dummy' stores nothing of it."


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "change",
    [*({"ON_CACHE_FAILURE": policy} for policy in ("raise", "fence", "open")), {"ENABLED": False}],
    ids=str,
)
def test_flush_fails_if_the_cache_does_not_answer_whatever_the_policy(
    cached: Watch, settings: Any, unreachable: None, change: dict[str, Any]
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, **change}
    for names in ([], ["tests.Author"]):
        with pytest.raises(CommandError) as raised:
            run("flush", *names, "--database", "default")
        message = str(raised.value)
        assert message.startswith("Nothing was invalidated of the database 'default': ")
        assert "the cache 'locmem'" in message
        assert message.endswith("out of order")
        # With "open" it fails as well.
        assert "ON_CACHE_FAILURE" not in message


@on_databases("postgresql", transaction=True)
def test_one_cache_that_does_not_answer_keeps_no_other_from_being_flushed(
    cached: Watch, settings: Any, using: str, unreachable: None
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "DATABASES": {using: {"CACHE_ALIAS": "filebased"}}}
    cached.warm(Author.objects.using(using).count)
    with pytest.raises(CommandError) as raised:
        run("flush")
    assert "'default'" in str(raised.value)
    assert f"{using!r}" not in str(raised.value)
    cached.miss(Author.objects.using(using).count)


@on_databases("default", transaction=True)
@pytest.mark.parametrize("policy", ["raise", "open"])
def test_flush_notices_a_memcached_that_is_gone(using: str, settings: Any, policy: str) -> None:
    settings.CACHES = {**settings.CACHES, "gone": nowhere()}
    settings.ORMCACHE = {"CACHE_ALIAS": "gone", "ON_CACHE_FAILURE": policy}
    for _ in range(2):
        with pytest.raises(CommandError, match="'gone'"):
            run("flush", "--database", using)


@on_databases("default", transaction=True)
def test_status_notices_a_memcached_that_is_gone(using: str, settings: Any) -> None:
    settings.CACHES = {**settings.CACHES, "gone": nowhere()}
    settings.ORMCACHE = {"CACHE_ALIAS": "gone"}
    assert "cache unreachable: " in run("status", "--database", using)


@on_databases("default", transaction=True)
def test_flush_with_a_dummy_cache_has_nothing_to_do(using: str, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": "dummy"}
    assert run("flush", "--database", using) == (
        "Nothing is cached of default: the cache 'dummy' stores nothing of it.\n"
    )


# --- explain ---------------------------------------------------------------------------------


@on_databases("default", transaction=True)
def test_explain_tells_whether_a_query_is_cached(cached: Watch) -> None:
    query = "Author.objects.filter(name='a')"
    assert run("explain", query).startswith("not cached yet: ")
    list(Author.objects.filter(name="a"))
    assert run("explain", query).startswith("cached: ")
    assert "tables:    tests_author\n" in run("explain", query)


@on_databases("postgresql", transaction=True)
def test_explain_asks_the_database_that_is_named(cached: Watch, using: str) -> None:
    assert f"database:  {using}\n" in run("explain", "Author.objects", "--database", using)


@on_databases("default", transaction=True)
def test_explain_knows_q_f_and_models(cached: Watch) -> None:
    query = "Book.objects.filter(Q(pages=F('pages'))).annotate(n=models.Count('tags'))"
    assert run("explain", query).startswith("not cached yet: ")


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "query",
    [
        "Author.objects.annotate(n=functions.Length('name'), b=Value(1))",
        "Book.objects.annotate(a=Count('tags'), b=Sum('pages'), c=Avg('pages'))",
        "Book.objects.annotate(a=Min('pages'), b=Max('pages'))",
        "Author.objects.filter(Exists(Book.objects.filter(author=OuterRef('pk'))))",
        "Book.objects.filter(author__in=Subquery(Author.objects.values('pk')))",
        "Book.objects.filter(pages__gt=timezone.now().year)",
        "Author.objects.filter(name=settings.TIME_ZONE)",
    ],
)
def test_explain_knows_what_queries_are_written_with(cached: Watch, query: str) -> None:
    assert run("explain", query).startswith("not cached yet: ")


@on_databases("default", transaction=True)
def test_explain_gives_the_reason(cached: Watch) -> None:
    output = run("explain", "Author.objects.order_by('?')")
    assert output.startswith("not cached: random order (rand)\n  why:       The answer differs")


@on_databases("default", transaction=True)
def test_explain_takes_a_raw_query(cached: Watch) -> None:
    output = run("explain", "Author.objects.raw('SELECT 1 AS id')")
    assert output.startswith("not cached: raw()")


@on_databases("default", transaction=True)
@pytest.mark.parametrize(
    "query, message",
    [
        ("Author.objects.filter(", "fails: SyntaxError"),
        ("Nobody.objects.all()", "fails: NameError: name 'Nobody'"),
        ("Nobody.objects.all()", "is not defined. Write a model as"),
        ("nothing.Author.objects", 'with the label of its app as "shop.Book".'),
        ("tests.Nobody.objects", "has no attribute 'Nobody'"),
        ("Author.objects.filter(nothing=1)", "fails: FieldError"),
        ("Author.objects.get(pk=0)", "fails: DoesNotExist"),
        ("Author.objects.get(pk=0)", "does not exist. Leave out .get(), .first() or .count(), "),
        ("Author.objects.count()", 'write the queryset: "Book.objects.filter(pk=1)".'),
        ("Author.objects.count()", ": 0 is not a queryset. Leave out what evaluates it"),
        ("Author.objects.count()", "give Model.objects. Instead, write the queryset"),
        ("Author", "tests.models.Author'> is not a queryset"),
        (
            "Author.objects.using('none')",
            "cannot be explained: The connection 'none' doesn't exist.",
        ),
        ("", "fails: SyntaxError"),
    ],
)
def test_explain_says_what_is_wrong_with_an_expression(
    cached: Watch, query: str, message: str
) -> None:
    with pytest.raises(CommandError) as raised:
        run("explain", query)
    assert message in str(raised.value)


@pytest.fixture
def another_author(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a later app that has the name of one of the first."""
    with isolate_apps("tests"):

        class Author(models.Model):
            class Meta:
                app_label = "later"
                db_table = "of_a_later_app"

    both = SimpleNamespace(get_models=lambda: [*apps.get_models(), Author])
    monkeypatch.setattr("ormcache.management.commands.ormcache.apps", both)


@on_databases("default", transaction=True)
def test_explain_takes_the_first_apps_of_two_models_with_one_name(
    cached: Watch, another_author: None
) -> None:
    assert "tables:    tests_author\n" in run("explain", "Author.objects")


@on_databases("default", transaction=True)
def test_explain_takes_a_model_by_the_label_of_its_app(
    cached: Watch, another_author: None
) -> None:
    assert "tables:    tests_author\n" in run("explain", "tests.Author.objects.all()")
    assert "of_a_later_app" in run("explain", "later.Author.objects.all()")


@on_databases("default", transaction=True)
def test_explain_names_an_unreachable_cache(cached: Watch, unreachable: None) -> None:
    assert run("explain", "Author.objects").startswith("not cached: cache unreachable\n")


# --- status ----------------------------------------------------------------------------------


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_status_shows_how_a_database_is_cached(
    cached: Watch, using: str, cache: str, settings: Any
) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "TIMEOUT": 77, "ON_CACHE_FAILURE": "open"}
    lines = [line.strip() for line in run("status", "--database", using).splitlines()]
    assert lines[0] == using
    for line in (
        "enabled: True",
        "cache: redis",
        "consistency: strict",
        "timeout in seconds: 77",
        "lease in seconds: 0.5",
        "when the cache fails: open",
    ):
        assert line in lines
    url = urlsplit(settings.CACHES[cache]["LOCATION"])
    assert "protocol: 1" in lines
    assert f"server: {url.netloc}, database {url.path[1:]}, no TLS, no password" in lines
    for name in ("namespace: ", "key prefix: ", "incarnation: ", "age in seconds: "):
        assert any(line.startswith(name) for line in lines), name


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_status_shows_the_quarantine(cached: Watch, using: str, cache: str) -> None:
    from django.core.cache import caches

    caches[cache].clear()
    assert "quarantine: nothing is cached for another 0." in run("status", "--database", using)


_LEASE = f"lease in seconds: {Settings().LEASE}"
_DIFFERS = ("namespace", "cache", "server", "key prefix", "incarnation", "age", "registers")


def _status_in(page: str) -> list[str]:
    """The lines that the page shows below ``manage.py ormcache status`` and the alias."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
    _, _, shown = text.partition("$ python manage.py ormcache status")
    block, _, _ = shown.partition("\n\n")
    return [line.strip() for line in block.splitlines()[2:]]


@pytest.mark.parametrize("page", ["quickstart.md", "reference/command.md", "howto/south.md"])
@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_the_documentation_shows_what_status_prints_without_settings(
    cached: Watch, settings: Any, using: str, cache: str, page: str
) -> None:
    """Line for line, and the values of those that are alike everywhere."""
    settings.ORMCACHE = {"CACHE_ALIAS": cache, "LEASE": settings.ORMCACHE["LEASE"]}
    counters.reset()
    text = run("status", "--database", using).replace("lease in seconds: 0.5", _LEASE)
    printed = [line.strip() for line in text.splitlines()[1:]]
    shown = [line for line in _status_in(page) if not line.startswith("quarantine: ")]
    if shown[-1] == "…":
        del shown[-1], printed[len(shown) :]
    for line, other in zip(shown, printed, strict=True):
        assert line.partition(": ")[0] == other.partition(": ")[0]
        assert line == other or line.startswith(_DIFFERS)


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_status_shows_no_quarantine_when_it_is_over(cached: Watch, using: str, cache: str) -> None:
    cached.warm(Author.objects.using(using).count)
    assert "quarantine: " not in run("status", "--database", using)


@on_databases("default", transaction=True)
def test_status_shows_the_counters(cached: Watch) -> None:
    counters.reset()
    cached.warm(Author.objects.count)
    list(Author.objects.iterator())
    output = run("status", "--database", "default")
    assert "  tests_author: hit 1, miss 1\n" in output
    assert "  (before compiling): skip: iterator() 1\n" in output


@on_databases("default", transaction=True)
def test_status_shows_commits_under_way_in_local_memory(cached: Watch) -> None:
    assert "  commits under way: none\n" in run("status", "--database", "default")
    store, namespace = store_of("default"), route_of("default").namespace
    store.arm(namespace, "one", ["tests_book", "tests_author"])
    output = run("status", "--database", "default")
    store.finish(namespace, "one", ["tests_book", "tests_author"])
    assert re.search(
        r"  commits under way: tests_author \(for 0\.\d s at most\), tests_book \(for", output
    )


@on_databases("default", "postgresql", transaction=True)
@on_caches("redis")
def test_status_says_whether_there_is_a_fence(
    cached: Watch, using: str, cache: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line() -> str:
        lines = run("status", "--database", using).splitlines()
        return "".join(line for line in lines if line.startswith("  fence: "))

    assert line() == "  fence: looked into every 1 s"
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": 2.5}
    assert line() == "  fence: looked into every 2.5 s"
    with monkeypatch.context() as patch:
        patch.setattr(fence_rows, "look_for", lambda connection: fence_rows.Found.HIDDEN)
        assert line().endswith("is in a schema in which this connection does not look")
        patch.setattr(fence_rows, "look_for", lambda connection: fence_rows.Found.SEVERAL)
        assert line().endswith(
            "2.5 s, but writes are refused while the cache is down: there is not exactly one "
            "table ormcache_fence, where all look"
        )
        patch.setattr(fence_rows, "look_for", lambda connection: fence_rows.Found.NOWHERE)
        assert line() == (
            "  fence: table ormcache_fence is missing, run `manage.py migrate ormcache`"
        )

        def fail(connection: Any) -> None:
            raise OperationalError("gone")

        patch.setattr(fence_rows, "look_for", fail)
        assert line() == f"  fence: the database {using!r} does not answer: gone"
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": None}
    assert line() == ""


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_status_says_that_a_role_may_not_read_the_fence(
    cached: Watch, using: str, cache: str
) -> None:
    backdoor.execute(using, "CREATE ROLE no_reader", "SET ROLE no_reader")
    try:
        assert (
            "  fence: nothing is cached, because this role cannot read ormcache_fence: permission "
            "denied for table ormcache_fence"
        ) in run("status", "--database", using).splitlines()
    finally:
        backdoor.execute(using, "RESET ROLE", "DROP ROLE no_reader")


@on_databases("default", transaction=True)
def test_status_says_nothing_of_a_fence_that_local_memory_does_not_need(
    cached: Watch, settings: Any
) -> None:
    assert "fence: looked" not in run("status", "--database", "default")
    settings.ORMCACHE = {**settings.ORMCACHE, "FENCE": 1}
    assert "fence: looked into every 1 s\n" in run("status", "--database", "default")


@on_databases("default", transaction=True)
def test_status_shows_what_is_off(using: str, settings: Any) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "ENABLED": False, "CACHE_ALIAS": "dummy"}
    output = run("status", "--database", using)
    assert "enabled: False\n" in output
    assert "consistency: off\n" in output


@on_databases("default", transaction=True)
def test_status_shows_an_unreachable_cache(cached: Watch, unreachable: None) -> None:
    output = run("status", "--database", "default")
    assert "cache unreachable: out of order\n" in output


def test_status_without_a_database_shows_all() -> None:
    headings = [line for line in run("status").splitlines() if not line.startswith(" ")]
    assert headings == list(connections)


# --- protocol --------------------------------------------------------------------------------


@on_databases("postgresql", transaction=True)
@on_caches("redis", "django_redis", "django_valkey")
def test_protocol_prints_what_another_program_needs(
    cached: Watch, using: str, cache: str, settings: Any
) -> None:
    printed = json.loads(run("protocol", "--database", using))
    url = urlsplit(settings.CACHES[cache]["LOCATION"])
    route = route_of(using)
    assert (printed["host"], printed["port"]) == (url.hostname, url.port)
    assert printed["db"] == int(url.path[1:])
    assert (printed["tls"], printed["password"], printed["username"]) == (False, False, None)
    assert printed["unix_socket"] is None
    assert (printed["version"], printed["lease_ms"]) == (PROTOCOL, 500)
    assert printed["namespace"] == route.namespace
    assert printed["key_prefix"] == (f"ormcache:1:{{{route.namespace}}}:{printed['incarnation']}:")
    assert f"  key prefix: {printed['key_prefix']}\n" in run("status", "--database", using)


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_protocol_prints_a_script_alone(cached: Watch, using: str, cache: str) -> None:
    scripts = json.loads(run("protocol", "--database", using))["scripts"]
    for name in ("hold", "release"):
        assert run("protocol", "--database", using, "--script", name) == scripts[name]
    assert scripts == {"hold": SCRIPTS["arm"], "release": SCRIPTS["finish"]}


@on_databases("postgresql", transaction=True)
@on_caches("redis")
def test_other_programs_are_not_asked_whether_the_database_tells_what_is_over(
    cached: Watch, using: str, cache: str
) -> None:
    asks = "string.sub(ARGV[3], 1, 1) == '@' and '@Q' or 'Q'"
    store: Any = store_of(using)
    store.expects_ids(route_of(using).namespace)
    try:
        scripts = json.loads(run("protocol", "--database", using))["scripts"]
    finally:
        store._with_ids.clear()
    for name, script in (("hold", SCRIPTS["arm"]), ("release", SCRIPTS["finish"])):
        assert asks in script
        assert scripts[name] == script.replace(asks, "'@Q'")


@on_databases("default", transaction=True)
@pytest.mark.parametrize("scheme", ["rediss", "unix"])
def test_protocol_tells_how_the_server_is_reached_and_never_the_password(
    using: str, settings: Any, scheme: str
) -> None:
    with RedisServer(options={"requirepass": "secret", "unixsocketperm": "777"}) as redis:
        redis.options["unixsocket"] = path = str(redis.files / "redis.sock")
        redis.serve_tls()
        redis.restart()
        tls_port = int(redis.options["tls-port"])
        location = {
            "rediss": f"rediss://default:secret@{HOST}:{tls_port}/2?ssl_cert_reqs=none",
            "unix": f"unix://default:secret@{path}?db=2",
        }
        backend = "django.core.cache.backends.redis.RedisCache"
        settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": location[scheme]}}
        text, status = run("protocol", "--database", using), run("status", "--database", using)
        assert "secret" not in text + status
        printed = json.loads(text)
        assert (printed["db"], printed["username"], printed["password"]) == (2, "default", True)
        assert printed["tls"] == (scheme == "rediss")
        if scheme == "unix":
            assert (printed["host"], printed["port"], printed["unix_socket"]) == (None, None, path)
            server = f"{path}, database 2, no TLS, a password, user default"
        else:
            assert (printed["host"], printed["port"]) == (HOST, tls_port)
            server = f"{HOST}:{tls_port}, database 2, TLS, a password, user default"
        assert f"  server: {server}\n" in status


@on_databases("default", transaction=True)
@pytest.mark.parametrize("alias", ["locmem", "dummy", "filebased"])
def test_protocol_is_for_redis_only(using: str, settings: Any, alias: str) -> None:
    settings.ORMCACHE = {**settings.ORMCACHE, "CACHE_ALIAS": alias}
    with pytest.raises(CommandError, match=f"is cached in '{alias}', which is not Redis"):
        run("protocol")


@on_databases("default", transaction=True)
def test_protocol_names_a_server_that_does_not_answer(using: str, settings: Any) -> None:
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": f"redis://:secret@{HOST}:{servers.free_port()}",
        }
    }
    with pytest.raises(CommandError, match="The cache 'default' does not answer: ") as raised:
        run("protocol")
    assert "secret" not in str(raised.value)
