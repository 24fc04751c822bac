"""One contender's process: answers the coordinator's requests, one line of JSON each.

`python -m benchmarks.worker CONTENDER`; the first line on standard input says where the
services are. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

from benchmarks.bench import Bench
from benchmarks.cases import BY_NAME
from benchmarks.contenders import Services


def main() -> None:
    answers = _take_standard_output()
    services = Services(**json.loads(sys.stdin.readline()))
    bench = None
    try:
        bench = Bench(sys.argv[1], services)
        _answer(answers, {})
    except Exception:
        _answer(answers, {"error": traceback.format_exc()})
        return
    requests = _requests(bench)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            _answer(answers, requests[request.pop("do")](**request))
        except Exception:
            _answer(answers, {"error": traceback.format_exc()})


def _requests(bench: Bench) -> dict[str, Callable[..., dict[str, Any]]]:
    def load() -> dict[str, Any]:
        bench.load()
        return {}

    def tidy() -> dict[str, Any]:
        bench.tidy()
        return {}

    def warm_up(cases: list[str]) -> dict[str, Any]:
        return {"cold": bench.warm_up(BY_NAME[name] for name in cases)}

    def inspect(case: str) -> dict[str, Any]:
        return asdict(bench.inspect(case))

    def time(case: str) -> dict[str, Any]:
        return asdict(bench.time(case))

    return {handler.__name__: handler for handler in (load, tidy, warm_up, inspect, time)}


def _take_standard_output() -> TextIO:
    """Keep the pipe for answers; whatever else prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
