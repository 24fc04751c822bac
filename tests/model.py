"""The registers of `ormcache/stores/lua` as an automaton, and a search of all that can happen.

`Registers` does what the scripts do. `test_registers` compares the two, command by command, and
lets `search` try every order in which writers, readers, clocks and accidents can act on them.
Then no cached answer may ever differ from the database. Each of `FLAWS` takes one device of the
protocol away; the search must then find a wrong answer, or it would prove nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

EVERYTHING = "*"
QUARANTINE = "Q"
TOLD = "@"
"""So begins an intent whose end the database can tell."""

FLAWS = (
    "a lost register is taken for a new one",
    "a new namespace is trusted at once",
    "arm does not note the register",
    "intents are not counted",
    "finish although the outcome is unknown",
    "the lease ends before the commit",
    "a repeated command brings its nonce again",
    "no new nonce for a commit",
)


class Register(NamedTuple):
    nonce: Any = None
    counter: int | None = None
    intents: tuple[tuple[str, int], ...] = ()


class Namespace(NamedTuple):
    """What only the register "*" holds."""

    born: int
    longest: int
    known: frozenset[str]


class Answer(NamedTuple):
    """Of a read: the vector of clean registers, or when and what is the matter."""

    vector: tuple[tuple[Any, int | None], ...] | None
    kind: str = ""
    remaining: int = 0


class Registers:
    """The registers of one namespace."""

    __slots__ = ("flaw", "namespace", "now", "registers")

    def __init__(
        self,
        registers: dict[str, Register] | None = None,
        namespace: Namespace | None = None,
        *,
        now: int = 0,
        flaw: str = "",
    ) -> None:
        self.registers = registers if registers is not None else {}
        self.namespace = namespace
        self.now = now
        self.flaw = flaw

    # What the scripts do.

    def touch(self, name: str, nonce: Any, asked: int | str) -> Register:
        """Bring a register up to the present."""
        register = self.registers.get(name, Register())
        if register.nonce is None:
            lease, has_ids = _lease(asked)
            is_new = name != EVERYTHING and not self._is_known(name)
            ends = self._birth(lease) if name == EVERYTHING else self._creation(name, lease)
            # What is new here waits with "*" for transactions of before.
            id_ = TOLD + QUARANTINE if has_ids and not is_new else QUARANTINE
            intents = ((id_, ends),) if ends > self.now else ()
            register = Register(nonce, register.counter, intents)
        elif register.intents:
            live = tuple(
                (name, end)
                for name, end in register.intents
                if end > self.now or name.startswith(TOLD)
            )
            if not live:
                register = Register(nonce, register.counter)
            elif len(live) < len(register.intents):
                register = register._replace(intents=live)
        self.registers[name] = register
        return register

    def _birth(self, lease: int) -> int:
        self.namespace = Namespace(self.now, lease, frozenset())
        if self.flaw == "a new namespace is trusted at once":
            self.namespace = Namespace(self.now - lease, lease, frozenset())
            return self.now
        return self.now + lease

    def _is_known(self, name: str) -> bool:
        return self.namespace is not None and name in self.namespace.known

    def _creation(self, name: str, lease: int) -> int:
        assert self.namespace is not None
        longest = max(self.namespace.longest, lease)
        if name in self.namespace.known:
            lost = self.flaw != "a lost register is taken for a new one"
            return self.now + longest if lost else self.now
        self._note(name)
        return self.namespace.born + longest

    def _note(self, name: str) -> None:
        assert self.namespace is not None
        if name not in self.namespace.known:
            self.namespace = self.namespace._replace(known=self.namespace.known | {name})

    def read(self, tables: Iterable[str], nonce: Any, lease: int | str) -> Answer:
        names = (EVERYTHING, *tables)
        found = [self.registers.get(name) for name in names]
        if not all(r is not None and r.nonce is not None and not r.intents for r in found):
            found = [self.touch(name, nonce, lease) for name in names]
            intents = [intent for r in found if r is not None for intent in r.intents]
            if intents:
                is_quarantine = any(id_.strip("@!0123456789") == QUARANTINE for id_, _ in intents)
                kind = "quarantine" if is_quarantine else "busy"
                if any(self._is_overdue(*pair) for pair in intents):
                    kind = "overdue"
                return Answer(None, kind, max(end for _, end in intents) - self.now)
        return Answer(tuple((r.nonce, r.counter) for r in found if r is not None))

    def arm(self, intent: str, tables: Iterable[str], nonce: Any, asked: int | str) -> None:
        self.touch(EVERYTHING, nonce, asked)
        assert self.namespace is not None
        lease, _ = _lease(asked)
        if lease > self.namespace.longest:
            self.namespace = self.namespace._replace(longest=lease)
        for name in tables:
            register = self.touch(name, nonce, asked)
            if self.flaw != "arm does not note the register":
                self._note(name)
            others = _others(register, intent)
            if self.flaw == "intents are not counted":
                others = ()
            fresh = register.nonce if self.flaw == "no new nonce for a commit" else nonce
            intents = (*others, (intent, self.now + lease))
            self.registers[name] = Register(fresh, register.counter, intents)

    def finish(self, intent: str, tables: Iterable[str], nonce: Any, lease: int | str) -> None:
        self.touch(EVERYTHING, nonce, lease)
        for name in tables:
            register = self.touch(name, nonce, lease)
            others = _others(register, intent)
            if self.flaw == "intents are not counted":
                others = ()
            fresh = register.nonce if self.flaw == "no new nonce for a commit" else nonce
            self.registers[name] = Register(fresh, register.counter, others)

    def settle(
        self,
        facts: tuple[int, int, int],
        tables: Iterable[str],
        nonce: Any,
        lease: int | str,
    ) -> None:
        moment, horizon, oldest = facts
        self.touch(EVERYTHING, nonce, lease)
        for name in tables:
            register = self.touch(name, nonce, lease)
            kept = []
            for intent, end in register.intents:
                if intent.startswith(TOLD) and end <= moment:
                    base, _, limit = intent.partition("!")
                    limit = str(min(horizon, int(limit))) if limit else str(horizon)
                    if oldest < int(limit):
                        kept.append((f"{base}!{limit}", end))
                else:
                    kept.append((intent, end))
            if len(kept) < len(register.intents):
                register = register._replace(nonce=nonce)
            self.registers[name] = register._replace(intents=tuple(kept))

    def _is_overdue(self, intent: str, end: int) -> bool:
        return intent.startswith(TOLD) and end <= self.now

    # What others do.

    def lose(self, name: str) -> None:
        """Eviction, or DEL."""
        self.registers.pop(name, None)
        if name == EVERYTHING:
            self.namespace = None

    def increment(self, name: str) -> None:
        """HINCRBY, by a program that knows nothing else."""
        register = self.registers.get(name, Register())
        self.registers[name] = register._replace(counter=(register.counter or 0) + 1)


def _lease(asked: int | str) -> tuple[int, bool]:
    """The lease, and whether the database can tell which transactions are over."""
    text = str(asked)
    return int(text.removeprefix(TOLD)), text.startswith(TOLD)


def _others(register: Register, intent: str) -> tuple[tuple[str, int], ...]:
    def is_it(name: str) -> bool:
        return name == intent or (name.startswith(TOLD) and name.partition("!")[0] == intent)

    return tuple(pair for pair in register.intents if not is_it(pair[0]))


# --- the search ----------------------------------------------------------------------------


class Setting(NamedTuple):
    """Who takes part, and what may go wrong. Nothing is bounded in number."""

    tables: tuple[str, ...] = ("t",)
    """Of the one query that is cached."""
    writers: tuple[tuple[str, ...], ...] = (("t",), ("t",))
    """The tables that each writes."""
    readers: int = 1
    crashes: bool = True
    """Writers die at any step, connections are lost with the outcome unknown."""
    losses: bool = True
    """Any key is evicted or deleted, everything is flushed."""
    outsider: str = ""
    """How a program without ormcache tells of its commit: "increment", "delete", or none."""
    repeats: bool = False
    """A finish whose answer was lost is sent once more."""
    lease: int = 2
    """In ticks of the clock."""


class Writer(NamedTuple):
    """One commit after the other.

    `step`: idle, armed (COMMIT is not sent), sent, orphan (sent, and nobody waits for it),
    ended (it took effect or never will, finish is not sent) and finished (to be repeated).
    """

    step: str = "idle"
    lease: int = 0
    nonce: Any = None


class Reader(NamedTuple):
    """`step`: idle, missed (has the vector, not the answer), answered (is about to store it)."""

    step: str = "idle"
    vector: Any = None
    fresh: bool = False


class State(NamedTuple):
    """Times are relative to now, nonces are numbered in order of appearance."""

    registers: tuple[Register | None, ...]
    namespace: Namespace | None
    entry: tuple[Any, bool] | None
    """Its vector, and whether it is what the database would answer."""
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    untold: bool
    """An outsider has committed and not told yet: answers from before are expected."""


class Found(NamedTuple):
    states: int
    trace: tuple[str, ...] | None
    """The shortest way to a wrong answer, or None."""


_NEW = object()
"""A nonce that was never there; one step makes one at most."""
_DEAD = ("dead",)
"""A vector that no read will ever meet again."""


class Search:
    """Breadth first, so that the trace is as short as can be."""

    def __init__(self, setting: Setting, flaw: str = "") -> None:
        self.setting = setting
        self.flaw = flaw
        self.names = (EVERYTHING, *setting.tables)

    def run(self) -> Found:
        setting = self.setting
        start = State(
            registers=(None,) * len(self.names),
            namespace=None,
            entry=None,
            writers=(Writer(),) * len(setting.writers),
            readers=(Reader(),) * setting.readers,
            untold=False,
        )
        came_from: dict[State, tuple[State, str] | None] = {start: None}
        front = [start]
        while front:
            following = []
            for state in front:
                for label, new in self.steps(state):
                    if new is None:
                        return Found(len(came_from), (*_trace(came_from, state), label))
                    if new not in came_from:
                        came_from[new] = (state, label)
                        following.append(new)
            front = following
        return Found(len(came_from), None)

    def steps(self, state: State) -> Iterator[tuple[str, State | None]]:
        """What can happen next; None in place of a state where an answer is wrong."""
        for index, writer in enumerate(state.writers):
            yield from self._writer(state, index, writer)
        for index, reader in enumerate(state.readers):
            yield from self._reader(state, index, reader)
        yield from self._clock(state)
        if self.setting.losses:
            yield from self._losses(state)
        if self.setting.outsider:
            yield from self._outsider(state)

    # Each kind of step.

    def _writer(self, state: State, index: int, writer: Writer) -> Iterator[tuple[str, State]]:
        who, tables, lease = f"W{index}", self.setting.writers[index], self.setting.lease
        step = writer.step

        def become(label: str, new: Writer, after: State = state) -> tuple[str, State]:
            writers = (*after.writers[:index], new, *after.writers[index + 1 :])
            return f"{who} {label}", self._canonical(after._replace(writers=writers))

        def finish(nonce: Any = _NEW) -> State:
            registers = self._thaw(state)
            registers.finish(who, tables, nonce, lease)
            return self._freeze(state, registers)

        if step in ("idle", "armed", "sent"):
            registers = self._thaw(state)
            registers.arm(who, tables, _NEW, lease)
            armed = Writer("armed" if step == "idle" else step, lease)
            label = "arms" if step == "idle" else "renews its intent"
            yield become(label, armed, self._freeze(state, registers))
        if step == "armed":
            yield become("sends COMMIT", writer._replace(step="sent"))
        if step in ("sent", "orphan"):
            ended = Writer("ended" if step == "sent" else "idle")
            yield become("is committed", ended, _outdated(state))
            yield become("is rolled back", ended)
        if step == "ended":
            done = Writer("idle")
            if self.setting.repeats:
                # The nonce is marked by hand, since the registers may lose it meanwhile.
                done = Writer("finished", nonce=_NEW)
                if self.flaw != "a repeated command brings its nonce again":
                    done = Writer("finished")
            yield become("finishes", done, finish())
        if step == "finished":
            again = _NEW if writer.nonce is None else writer.nonce
            yield become("repeats its finish", Writer(), finish(again))
            yield become("has its answer", Writer())
        if self.setting.crashes:
            if step in ("armed", "ended"):
                yield become("dies", Writer())
            if step == "sent":
                orphan = writer._replace(step="orphan")
                if self.flaw == "finish although the outcome is unknown":
                    yield become("loses its connection and finishes", orphan, finish())
                else:
                    yield become("dies or loses its connection", orphan)

    def _reader(
        self, state: State, index: int, reader: Reader
    ) -> Iterator[tuple[str, State | None]]:
        who = f"R{index}"

        def become(label: str, new: Reader, after: State = state) -> tuple[str, State]:
            readers = (*after.readers[:index], new, *after.readers[index + 1 :])
            return f"{who} {label}", self._canonical(after._replace(readers=readers))

        if reader.step == "idle":
            registers = self._thaw(state)
            answer = registers.read(self.setting.tables, _NEW, self.setting.lease)
            after = self._freeze(state, registers)
            if answer.vector is None:
                yield become(f"is told {answer.kind}", reader, after)
            elif state.entry is None or state.entry[0] != answer.vector:
                yield become("misses", Reader("missed", answer.vector), after)
            elif state.entry[1] or state.untold:
                yield become("hits", reader, after)
            else:
                yield f"{who} hits an old answer", None
        elif reader.step == "missed":
            yield become("asks the database", Reader("answered", reader.vector, True))
        else:
            entry = None if reader.vector == _DEAD else (reader.vector, reader.fresh)
            yield become("stores", Reader(), state._replace(entry=entry))
            yield become("does not store", Reader())

    def _clock(self, state: State) -> Iterator[tuple[str, State]]:
        writers = []
        for writer in state.writers:
            if writer.step in ("armed", "sent", "orphan"):
                if writer.lease == 1 and self.flaw != "the lease ends before the commit":
                    # A COMMIT has taken effect, or never will, before its lease is over.
                    return
                writer = writer._replace(lease=max(0, writer.lease - 1))
            writers.append(writer)
        registers = tuple(
            r and r._replace(intents=tuple((name, max(0, end - 1)) for name, end in r.intents))
            for r in state.registers
        )
        space = state.namespace
        if space is not None:
            space = space._replace(born=max(space.born - 1, -self.setting.lease))
        after = state._replace(registers=registers, namespace=space, writers=tuple(writers))
        yield "tick", self._canonical(after)

    def _losses(self, state: State) -> Iterator[tuple[str, State]]:
        for name, register in zip(self.names, state.registers, strict=True):
            if register is not None:
                registers = self._thaw(state)
                registers.lose(name)
                yield f"{name} is lost", self._canonical(self._freeze(state, registers))
        empty = state._replace(registers=(None,) * len(self.names), namespace=None, entry=None)
        yield "everything is lost", self._canonical(empty)

    def _outsider(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.untold:
            after = _outdated(state)._replace(untold=True)
            yield "outsider commits", self._canonical(after)
            return
        registers = self._thaw(state)
        name = self.setting.tables[0]
        if self.setting.outsider == "increment":
            registers.increment(name)
        else:
            registers.lose(name)
        after = self._freeze(state, registers)._replace(untold=False)
        yield f"outsider tells: {self.setting.outsider}", self._canonical(after)

    # To the automaton and back.

    def _thaw(self, state: State) -> Registers:
        pairs = zip(self.names, state.registers, strict=True)
        present = {name: register for name, register in pairs if register is not None}
        return Registers(present, state.namespace, flaw=self.flaw)

    def _freeze(self, state: State, registers: Registers) -> State:
        return state._replace(
            registers=tuple(registers.registers.get(name) for name in self.names),
            namespace=registers.namespace,
        )

    def _canonical(self, state: State) -> State:
        """The same for states that differ in the names of nonces only.

        A nonce that is in no register, and that no command can bring back, is gone for good,
        and with it every vector that has it.
        """
        numbers: dict[Any, int] = {}
        nonces = [r.nonce for r in state.registers if r is not None and r.nonce is not None]
        nonces += [writer.nonce for writer in state.writers if writer.nonce is not None]
        for nonce in nonces:
            numbers.setdefault(nonce, len(numbers) + 1)
        counters = [r.counter if r is not None else None for r in state.registers]

        def renamed(vector: Any) -> Any:
            if vector == _DEAD:
                return vector
            for (nonce, counter), current in zip(vector, counters, strict=True):
                if nonce not in numbers or counter != current:
                    return _DEAD
            return tuple((numbers[nonce], None) for nonce, _ in vector)

        entry = state.entry
        if entry is not None:
            vector = renamed(entry[0])
            entry = None if vector == _DEAD else (vector, entry[1])
        return State(
            registers=tuple(r and _tidy(r, numbers) for r in state.registers),
            namespace=state.namespace,
            entry=entry,
            writers=tuple(
                w if w.nonce is None else w._replace(nonce=numbers[w.nonce]) for w in state.writers
            ),
            readers=tuple(
                r if r.step == "idle" else _reader(r, renamed(r.vector)) for r in state.readers
            ),
            untold=state.untold,
        )


def _tidy(register: Register, numbers: dict[Any, int]) -> Register:
    if register.nonce is None:
        return Register(counter=1)
    return Register(numbers[register.nonce], None, tuple(sorted(register.intents)))


def _reader(reader: Reader, vector: Any) -> Reader:
    if vector == _DEAD:
        # What it stores can no longer be met, whatever it is.
        return Reader("answered", _DEAD)
    return reader._replace(vector=vector)


def _outdated(state: State) -> State:
    """A commit has taken effect: every answer from before is an old one."""
    entry = state.entry and (state.entry[0], False)
    readers = tuple(reader._replace(fresh=False) for reader in state.readers)
    return state._replace(entry=entry, readers=readers)


def _trace(came_from: dict[State, Any], state: State) -> Sequence[str]:
    labels = []
    while (before := came_from[state]) is not None:
        state, label = before
        labels.append(label)
    return labels[::-1]


def search(setting: Setting, flaw: str = "") -> Found:
    """All that can happen in `setting`, until an answer is wrong."""
    return Search(setting, flaw).run()
