"""Readers and writers in several processes, while everything around them breaks.

    python -m tests.soak --seconds 600 --processes 4 --seed 1

Private servers are started: PostgreSQL, MariaDB and Redis. Every process reads as fast as it
can, and some write; each read is checked against the floor of values that were committed, and
acknowledged, before it began. Meanwhile a vandal kills and stops processes, ends sessions,
evicts and deletes registers, restarts Redis empty and from a dump, and lets it fail over to a
replica.

`workers` is what the processes do, `vandal` what is done to them, `board` what they share.
"""
