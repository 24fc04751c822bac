"""Runs Python code that comes in, one JSON string a line, and answers each with a line."""

import json
import sys

from django.core.management.base import NoArgsCommand
from django.db import connection, connections, transaction

import ormcache_south
from legacy.models import Item
from notes.models import Note
from pauses import pause


class Command(NoArgsCommand):
    def handle_noargs(self, **options):
        names = {
            "Item": Item,
            "Note": Note,
            "connection": connection,
            "connections": connections,
            "ormcache_south": ormcache_south,
            "pause": pause,
            "transaction": transaction,
        }
        for line in iter(sys.stdin.readline, ""):
            try:
                exec(json.loads(line), names)
                answer = "done"
            except Exception as error:
                answer = "%s: %s" % (type(error).__name__, error)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
