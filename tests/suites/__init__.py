"""Runs the test suites of Django and of other projects with ormcache, and without.

    python -m tests.suites django                         # Django's own suite: hours
    python -m tests.suites django queries aggregation     # some of its apps
    python -m tests.suites django --fast                  # what CI runs
    python -m tests.suites projects

A suite is run on two stacks: SQLite with LocMem, and PostgreSQL with Redis. On each there are
three runs: one *without* ormcache; one that is *verifying*, in which every answer that the cache
has is compared with that of the database, and the latter is used; and one that is *serving*, in
which answers come from the cache. Each test must end in all three as it does without ormcache.

In most of Django's tests nothing could be served from the cache, as they write and read in one
transaction that is rolled back. So the tests are run as on a database without transactions: what
they write is committed, and deleted when they end (`--in-transactions` leaves them alone).

While serving, a test that counts queries finds fewer. That is told from its message. Any other
difference has to be explained in `differences.toml`, where somebody has looked at it. An entry
that explains nothing, on a stack and in a run that it names, though tests that it names were run,
is told; with `--strict` it is a failure.

`inside` is what runs in the process of a suite.
"""
