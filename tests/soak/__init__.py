"""Readers and writers in several processes, while everything around them breaks.

    python -m tests.soak --seconds 600 --processes 4 --seed 1
    python -m tests.soak --pooled --seconds 600 --threads 50
    python -m tests.soak --seconds 600 --reads 1000000

Private servers are started: PostgreSQL, MariaDB and Redis. Every process reads as fast as it
can, and some write; each read is checked against the floor of values that were committed, and
acknowledged, before it began. Meanwhile a vandal kills and stops processes, ends sessions,
evicts and deletes registers, restarts Redis empty and from a dump, and lets it fail over to a
replica.

With `--pooled` there are PostgreSQL, PgBouncer in transaction mode, and Redis. Many threads of two
processes share few sessions, half of them behind PgBouncer, half behind psycopg's pool. Every hit
is compared with the database, too (`VERIFY`). The vandal ends sessions, and kills PgBouncer.

With `--reads`, it goes on after `--seconds` until so many reads were made.

`workers` and `pooled` are what the processes do, `vandal` what is done to them, `board` what they
share.
"""
