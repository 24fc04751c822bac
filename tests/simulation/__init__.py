"""The real client over a simulated database and a simulated Redis, step by step.

What is real: all of `ormcache` from Django's SQL compiler and cursor down to the bytes that go to
Redis, with Django around it: `SQLCompiler.execute_sql`, `CursorWrapper.execute`, `atomic()`,
`commit()`; and the Lua scripts, run by Lua 5.1 as they are.

What is simulated: the driver of the database, whose tables are numbers that each commit raises,
and which has the table of the fence (`database`); redis-py's connection, and the servers behind
it (`server`); every clock; the threads of a process, which are greenlets here, so that one step of
one of them runs at a time and a seed decides of which (`scheduler`). A process has module state of
its own (`world`).

What can happen between any two steps: a process is killed; a register or an entry is evicted,
everything is flushed, an entry is copied over another; the server forgets its scripts, is
restarted empty, or from an old dump, or gives way to a replica that lags behind, and stays
reachable on old sockets; a request or a reply is lost, a reply is late, and what was sent is
executed all the same, at any later time; what may stay unsent (`Channel.send_later`) is never
sent; a connection to the database is lost during a COMMIT, which takes effect later, or never;
time passes, clocks differ and drift, and Redis' clock is set back.

What is assumed, and therefore never happens, is what `docs/explanation/guarantees.md` asks for:

- A COMMIT takes effect, or never will, within 0.6 leases of its bracket's last look at the clock,
  or of the last round of the thread that renews leases if nothing went wrong with the network.
- Redis' clock is never set forward, and no clock runs more than 2 % fast or slow.
- Nobody answers for a server that has been replaced: one that is demoted knows it.
- Each write is seen at the cursor, and a commit that was acknowledged is visible.

With the policy "open" a write goes through that the cache could not be told of. Then the writing
process must not miss it, and after each process has reached the cache again nobody may; unless a
process was killed meanwhile, or does not know what became of its COMMIT.

With "fence", the default, such a write is committed together with rows of the fence. The writing
process must not miss it, nobody may `FENCE` seconds later by a clock that is slow, whoever was
killed, and nobody may at all when each process has looked into the fence once more. What is not
simulated is the database that keeps the promise of one transaction, and what the fence does where
a row cannot be written: no table or several, rights, other statements than UPDATE.
`tests/test_fence_rows.py` has real ones, with processes that are killed before and after COMMIT.
It also measures the second: the schedules find a look that is believed for a minute, but hardly
one that is believed for two seconds.

A read is correct if the database would have answered it so at some moment between the read's
beginning and its end, with what its own transaction has written; see `actors.Session.check`.

    python -m tests.simulation --seed 42           # one schedule, told step by step
    python -m tests.simulation --policy fence      # with another policy than "raise"
    python -m tests.simulation --find              # where each mutant is found, for found.json
    python -m tests.simulation --schedules 5000000 --processes 2
"""
