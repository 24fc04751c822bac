"""The registers: no order of events makes an answer wrong, and the scripts are what was proven."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ormcache.stores.redis import SCRIPTS, _script
from tests.marks import needs
from tests.model import FLAWS, QUARANTINE, Registers, Setting, search

SETTINGS = {
    "two writers": Setting(),
    "two writers, two readers": Setting(readers=2, lease=1),
    "three writers": Setting(writers=(("t",),) * 3, lease=1),
    "no faults, two readers": Setting(readers=2, crashes=False, losses=False),
    "a writer of everything": Setting(writers=(("t",), ("*",))),
    "a join of two tables": Setting(
        tables=("t", "u"), writers=(("t", "u"), ("u",)), crashes=False, lease=1
    ),
    "an outsider that increments": Setting(outsider="increment", lease=1),
    "an outsider that deletes": Setting(outsider="delete", lease=1),
    "repeated commands": Setting(repeats=True, lease=1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_no_order_of_events_makes_a_hit_wrong(name: str) -> None:
    found = search(SETTINGS[name])
    assert found.trace is None
    # It searched: the smallest of these has some hundred states.
    assert found.states > 500


@pytest.mark.slow
@pytest.mark.parametrize("flaw", FLAWS)
def test_without_one_of_its_devices_the_protocol_is_wrong(flaw: str) -> None:
    repeats = flaw == "a repeated command brings its nonce again"
    found = search(Setting(repeats=repeats, lease=1), flaw)
    assert found.trace is not None
    assert "hits an old answer" in found.trace[-1]


@pytest.mark.slow
def test_quarantine_is_what_makes_deletion_by_an_outsider_safe() -> None:
    """Without losses of any other kind, DEL in the middle of a commit would be enough."""
    setting = Setting(losses=False, crashes=False, outsider="delete")
    assert search(setting).trace is None
    assert search(setting, "a lost register is taken for a new one").trace is not None


# --- the scripts and the model ---------------------------------------------------------------

ENTRY = "e" * 40
_tables = st.sampled_from([("a",), ("b",), ("a", "b")])
_written = st.sampled_from([("a",), ("b",), ("a", "b"), ("*",)])
_names = st.sampled_from(["*", "a", "b"])
_leases = st.sampled_from([100, 100, 300, "@100", "@300"])
_intents = st.sampled_from(["1.0", "1.1", "2.0", "@1.0", "@2.0"])
# How long ago, horizon, oldest.
_facts = st.tuples(
    st.sampled_from([0, 0, 60, 150]), st.sampled_from([5, 7]), st.sampled_from([3, 5, 6, 7])
)
_operations = st.one_of(
    st.tuples(st.just("read"), _tables, _leases),
    st.tuples(st.just("read"), _tables, _leases),
    st.tuples(st.just("store"), _tables),
    st.tuples(st.just("arm"), _intents, _written, _leases),
    st.tuples(st.just("finish"), st.one_of(_intents, st.just("")), _written, _leases),
    st.tuples(st.just("settle"), _facts, _written, _leases),
    st.tuples(st.just("lose"), _names),
    st.tuples(st.just("lose everything")),
    st.tuples(st.just("increment"), _names),
    st.tuples(st.just("pass"), st.sampled_from([1, 60, 100, 101, 300])),
)
_namespaces = itertools.count()


class Scripts:
    """The real scripts on a real server, less its clock: that one is the test's."""

    def __init__(self, client: Any, scripts: dict[str, str] = SCRIPTS) -> None:
        self.client = client
        self.prefix = f"ormcache-test:{{{next(_namespaces)}}}:"
        self.replid = client.info("replication")["master_replid"]
        asks, told = "redis.call('TIME')", f"redis.call('LRANGE', '{self.prefix}clock', 0, 1)"
        self.texts = {}
        for name, text in scripts.items():
            assert asks in text
            self.texts[name] = text.replace(asks, told)

    def set_clock(self, now: int) -> None:
        self.client.delete(f"{self.prefix}clock")
        self.client.rpush(f"{self.prefix}clock", now // 1000, now % 1000 * 1000)

    def key(self, name: str) -> str:
        return f"{self.prefix}r:{name}"

    def change(self, script: str, intent: str, tables: Any, nonce: str, lease: Any) -> None:
        keys = [self.key(name) for name in ("*", *tables)]
        args = [self.replid, nonce, lease, intent]
        self.client.eval(self.texts[script], len(keys), *keys, *args)

    def settle(self, facts: tuple[int, int, int], tables: Any, nonce: str, lease: Any) -> None:
        keys = [self.key(name) for name in ("*", *tables)]
        args = [self.replid, nonce, lease, *facts]
        self.client.eval(self.texts["settle"], len(keys), *keys, *args)

    def read(self, tables: Any, nonce: str, lease: Any) -> Any:
        keys = [f"{self.prefix}e:{ENTRY}", *(self.key(name) for name in ("*", *tables))]
        args = [self.replid, nonce, lease]
        return self.client.eval(self.texts["read"], len(keys), *keys, *args)

    def hashes(self, names: Iterable[str] = ("*", "a", "b")) -> dict[str, dict[str, str]]:
        found = {}
        for name in names:
            raw = self.client.hgetall(self.key(name))
            found[name] = {key.decode(): value.decode() for key, value in raw.items()}
        return found

    def delete(self, *names: str) -> None:
        self.client.delete(*(self.key(name) for name in names))


def hashes_of(model: Registers) -> dict[str, dict[str, str]]:
    """What the server should hold if the model is right."""
    found: dict[str, dict[str, str]] = {name: {} for name in ("*", "a", "b")}
    for name, register in model.registers.items():
        fields = {"n": register.nonce, "x": register.counter}
        fields["d"] = ",".join(f"{key}={end}" for key, end in register.intents) or None
        found[name] = {key: str(value) for key, value in fields.items() if value is not None}
    if model.namespace is not None:
        found["*"] |= {"b": str(model.namespace.born), "l": str(model.namespace.longest)}
        found["*"] |= {f"t:{name}": "1" for name in model.namespace.known}
    return found


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(settings.CACHES["redis"]["LOCATION"]) as client:
        yield client


@needs("redis")
@given(operations=st.lists(_operations, min_size=5, max_size=40))
@hypothesis_settings(max_examples=150, deadline=None)
def test_the_scripts_do_what_the_model_does(client: Any, operations: Any) -> None:
    scripts, model = Scripts(client), Registers(now=1_700_000_000_000)
    scripts.set_clock(model.now)
    stored: bytes | None = None
    for number, (kind, *args) in enumerate(operations):
        nonce = f"n{number}"
        if kind == "read":
            tables, lease = args
            answer = scripts.read(tables, nonce, lease)
            expected = model.read(tables, nonce, lease)
            if expected.vector is None:
                assert answer == [b"", expected.kind.encode(), expected.remaining]
            else:
                pairs = ((n, "" if x is None else x) for n, x in expected.vector)
                head = ";".join([ENTRY, *(f"{n}:{x}" for n, x in pairs)]).encode() + b"|"
                is_hit = stored is not None and stored.startswith(head)
                assert answer == (stored if is_hit else [head])
        elif kind == "store":
            answer = scripts.read(args[0], nonce, 100)
            model.read(args[0], nonce, 100)
            if isinstance(answer, list) and len(answer) == 1:
                stored = answer[0] + b"payload"
                client.set(f"{scripts.prefix}e:{ENTRY}", stored)
        elif kind in ("arm", "finish"):
            intent, tables, lease = args
            scripts.change(kind, intent, tables, nonce, lease)
            getattr(model, kind)(intent, tables, nonce, lease)
        elif kind == "settle":
            (ago, horizon, oldest), tables, lease = args
            facts = (model.now - ago, horizon, oldest)
            scripts.settle(facts, tables, nonce, lease)
            model.settle(facts, tables, nonce, lease)
        elif kind == "lose":
            scripts.delete(*args)
            model.lose(*args)
        elif kind == "lose everything":
            scripts.delete("*", "a", "b")
            for name in ("*", "a", "b"):
                model.lose(name)
        elif kind == "increment":
            client.hincrby(scripts.key(args[0]), "x", 1)
            model.increment(args[0])
        else:
            model.now += args[0]
            scripts.set_clock(model.now)
        assert scripts.hashes() == hashes_of(model)


# What may have become of a register that was clean: fields with other values, or without one; or
# the text of a key of another type.
_deadlines = st.sampled_from([*["1700000009999"] * 3, "1700000000000", "1", "x"])
_ids = st.sampled_from(["1.0", "1.0", "@1.0", "@1.0!7", "Q", "@Q", "@Q!7", "", "1.0="])
_announced = st.lists(st.builds("{}={}".format, _ids, _deadlines), max_size=2).map(",".join)
_changes = st.one_of(
    st.tuples(st.just("d"), _announced),
    st.tuples(st.just("d"), st.sampled_from(["1.0", "1.0=", "=1", ","])),
    st.tuples(st.sampled_from(["n", "x", "b", "l"]), st.sampled_from([None, "", "1", "x"])),
    st.tuples(st.sampled_from("bl"), st.sampled_from(["inf", "nan", "1e20", "9" * 14, "-1"])),
    st.tuples(st.sampled_from(["t:*", "t:a", "t:b"]), st.none()),
)
_clean = {"n": "n", "b": "1", "l": "500", "t:*": "1", "t:a": "1", "t:b": "1"}
_damaged = st.lists(_changes, min_size=1, max_size=2).map(lambda new: {**_clean, **dict(new)})
_any_register = st.sampled_from([*[st.just(_clean)] * 5, *[_damaged] * 4, st.just("")]).flatmap(
    lambda kind: kind
)
_any_registers = st.fixed_dictionaries(dict.fromkeys(["*", "a", "b"], _any_register))


@needs("redis")
@given(
    registers=_any_registers,
    script=st.sampled_from(["arm", "finish"]),
    intent=st.sampled_from(["1.0", "@1.0"]),
    lease=st.sampled_from([200, "@200"]),
    tables=st.one_of(_written, st.just(("a", "*")), st.just(("a", "a"))),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_the_quick_way_of_a_script_does_what_the_long_one_does(
    client: Any, registers: Any, script: str, intent: str, lease: Any, tables: Any
) -> None:
    """Whatever others have put into the registers."""
    found = []
    for quick in ((f"{script}_clean",), ()):
        scripts = Scripts(client, {script: _script("incarnation", *quick, "registers", script)})
        scripts.set_clock(1_700_000_000_000)
        for name, content in registers.items():
            if isinstance(content, str):
                client.set(scripts.key(name), content)
            else:
                fields = {field: text for field, text in content.items() if text is not None}
                client.hset(scripts.key(name), mapping=fields)
        scripts.change(script, intent, tables, "new", lease)
        # Of another type only if it was none of the tables.
        kinds = {name: client.type(scripts.key(name)) for name in registers}
        found.append((kinds, scripts.hashes(n for n in kinds if kinds[n] != b"string")))
    assert found[0] == found[1]


def test_no_commit_can_be_taken_for_quarantine() -> None:
    """Intents are named by nonces, which are hexadecimal numbers."""
    from ormcache.stores.base import new_nonce

    assert QUARANTINE not in new_nonce()
    assert not set(new_nonce()) & set("=,;|:")
