"""``ormcache.disabled()``."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.db import connections

import ormcache
from ormcache import bypasses, disabled
from ormcache.reasons import Reason
from tests.marks import on_databases
from tests.models import Author
from tests.watching import Watch

pytestmark = on_databases("default", transaction=True)
OFF = Reason.DISABLED


def ask() -> int:
    return Author.objects.count()


@pytest.fixture(autouse=True)
def warm(cached: Watch, using: str) -> None:
    cached.warm(ask)


def run(coroutine: Any) -> Any:
    """Run a coroutine; what its threads opened is closed."""

    async def and_close() -> Any:
        try:
            return await coroutine
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(and_close())


# --- blocks ----------------------------------------------------------------------------------


def test_a_block_reads_from_the_database_and_then_again_from_the_cache(cached: Watch) -> None:
    with cached.expect("hit", OFF, OFF, "hit"):
        ask()
        with disabled():
            ask()
            ask()
        ask()


def test_a_block_that_is_left_in_another_task_switches_nothing_off_there(cached: Watch) -> None:
    block = disabled()

    async def enter_and_leave() -> None:
        await asyncio.create_task(block.__aenter__())
        await block.__aexit__()
        assert bypasses.why_bypassed() is None
        async with disabled():
            assert bypasses.why_bypassed() is OFF
        assert bypasses.why_bypassed() is None

    run(enter_and_leave())


def test_what_is_read_in_a_block_is_not_stored(cached: Watch) -> None:
    with disabled():
        list(Author.objects.all())
    cached.miss(lambda: list(Author.objects.all()))


def test_writes_in_a_block_invalidate(cached: Watch) -> None:
    with disabled():
        Author.objects.create(name="a")
    assert cached.miss(ask) == 1


def test_blocks_can_be_nested(cached: Watch) -> None:
    with cached.expect(OFF, OFF, OFF, "hit"):
        with disabled():
            ask()
            with disabled():
                ask()
            ask()
        ask()


def test_one_instance_can_be_used_again_and_inside_itself(cached: Watch) -> None:
    block = disabled()
    with cached.expect(OFF, OFF, OFF, "hit", OFF, "hit"):
        with block:
            ask()
            with block:
                ask()
            ask()
        ask()
        with block:
            ask()
        ask()


def test_an_exception_ends_a_block_and_is_passed_on(cached: Watch) -> None:
    with pytest.raises(ZeroDivisionError), disabled(), disabled():
        raise ZeroDivisionError
    cached.hit(ask)


def test_a_return_or_break_ends_a_block(cached: Watch) -> None:
    def returns() -> int:
        with disabled():
            return ask()

    returns()
    for _ in range(2):
        with disabled():
            break
    cached.hit(ask)


def test_another_thread_is_not_concerned(cached: Watch) -> None:
    inside, asked = threading.Event(), threading.Event()

    def block() -> None:
        with disabled():
            inside.set()
            assert asked.wait(10)

    thread = threading.Thread(target=block)
    thread.start()
    assert inside.wait(10)
    try:
        cached.hit(ask)
    finally:
        asked.set()
        thread.join()


def test_one_instance_in_two_threads_ends_in_each_where_it_began(cached: Watch) -> None:
    block = disabled()
    inside, go_on, errors = threading.Event(), threading.Event(), []

    def use() -> None:
        try:
            with block:
                inside.set()
                assert go_on.wait(10)
            assert bypasses._disabled.get() == 0
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    with block:
        thread.start()
        assert inside.wait(10)
    cached.hit(ask)
    go_on.set()
    thread.join()
    assert errors == []


# --- decorators ------------------------------------------------------------------------------


def test_a_function_can_be_decorated(cached: Watch) -> None:
    @disabled()
    def question(one: int, *, two: int) -> tuple[int, int, int]:
        """Its docstring."""
        return one, two, ask()

    with cached.expect(OFF, "hit"):
        assert question(1, two=2) == (1, 2, 0)
        ask()
    assert (question.__name__, question.__doc__) == ("question", "Its docstring.")


def test_a_decorated_function_can_call_itself(cached: Watch) -> None:
    @disabled()
    def question(times: int) -> None:
        ask()
        if times:
            question(times - 1)
        ask()

    with cached.expect(OFF, OFF, OFF, OFF):
        question(1)
    cached.hit(ask)


def test_a_decorated_function_that_fails_leaves_nothing_behind(cached: Watch) -> None:
    @disabled()
    def question() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        question()
    cached.hit(ask)


def test_a_coroutine_function_can_be_decorated(cached: Watch) -> None:
    @disabled()
    async def question(one: int) -> tuple[int, int]:
        await asyncio.sleep(0)
        return one, await Author.objects.acount()

    assert asyncio.iscoroutinefunction(question)

    async def both() -> None:
        assert await question(1) == (1, 0)
        await Author.objects.acount()

    with cached.expect(OFF, "hit"):
        run(both())


def _that_returns_a_coroutine() -> Any:
    def question() -> Any:
        return Author.objects.acount()

    return question


def _that_is_marked() -> Any:
    return markcoroutinefunction(_that_returns_a_coroutine())


def _with_an_asynchronous_call() -> Any:
    class Question:
        async def __call__(self) -> int:
            return await Author.objects.acount()

    return Question()


def _in_a_partial() -> Any:
    async def question(manager: Any) -> int:
        return await manager.acount()

    return functools.partial(question, Author.objects)


@pytest.mark.parametrize(
    "make",
    [_that_returns_a_coroutine, _that_is_marked, _with_an_asynchronous_call, _in_a_partial],
)
def test_a_coroutine_function_in_disguise_can_be_decorated(
    cached: Watch, make: Callable[[], Any]
) -> None:
    question = disabled()(make())

    async def both() -> None:
        assert await question() == 0
        await Author.objects.acount()

    with cached.expect(OFF, "hit"):
        run(both())


def test_a_decorated_function_in_disguise_begins_when_it_is_awaited(cached: Watch) -> None:
    question = disabled()(_that_returns_a_coroutine())

    async def three() -> None:
        awaitable = question()
        await Author.objects.acount()
        await awaitable
        await Author.objects.acount()

    with cached.expect("hit", OFF, "hit"):
        run(three())


def test_a_decorated_coroutine_that_fails_leaves_nothing_behind(cached: Watch) -> None:
    @disabled()
    async def question() -> None:
        raise ZeroDivisionError

    async def both() -> None:
        with pytest.raises(ZeroDivisionError):
            await question()
        await Author.objects.acount()

    with cached.expect("hit"):
        run(both())


def test_a_decorated_generator_is_refused() -> None:
    """It would be off while the generator is made, and on while it runs."""
    with pytest.raises(TypeError, match="generator"):

        @disabled()
        def rows() -> Any:
            yield 1

    with pytest.raises(TypeError, match="generator"):

        @disabled()
        async def more_rows() -> Any:
            yield 1


# --- asynchronous ----------------------------------------------------------------------------


def test_an_asynchronous_block_holds_across_awaits_and_in_threads(cached: Watch) -> None:
    async def question() -> None:
        await Author.objects.acount()
        async with disabled():
            await asyncio.sleep(0)
            await Author.objects.acount()
            await sync_to_async(ask)()
            await asyncio.gather(Author.objects.acount(), Author.objects.acount())
        await Author.objects.acount()

    with cached.expect("hit", OFF, OFF, OFF, OFF, "hit"):
        run(question())


def test_a_plain_block_holds_across_awaits(cached: Watch) -> None:
    async def question() -> None:
        with disabled():
            await asyncio.sleep(0)
            await Author.objects.acount()
        await Author.objects.acount()

    with cached.expect(OFF, "hit"):
        run(question())


def test_an_exception_ends_an_asynchronous_block(cached: Watch) -> None:
    async def question() -> None:
        with pytest.raises(ZeroDivisionError):
            async with disabled():
                raise ZeroDivisionError
        await Author.objects.acount()

    with cached.expect("hit"):
        run(question())


def test_another_task_is_not_concerned(cached: Watch) -> None:
    async def question() -> None:
        inside, asked = asyncio.Event(), asyncio.Event()

        async def block() -> None:
            async with disabled():
                inside.set()
                await asked.wait()
                await Author.objects.acount()

        task = asyncio.create_task(block())
        await inside.wait()
        await Author.objects.acount()
        asked.set()
        await task

    with cached.expect("hit", OFF):
        run(question())


def test_one_instance_in_two_tasks_ends_in_each_where_it_began(cached: Watch) -> None:
    async def question() -> None:
        block = disabled()
        first_inside, second_out = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with block:
                first_inside.set()
                await second_out.wait()
                await Author.objects.acount()
            await Author.objects.acount()

        async def second() -> None:
            await first_inside.wait()
            async with block:
                await Author.objects.acount()
            second_out.set()

        await asyncio.gather(first(), second())

    with cached.expect(OFF, OFF, "hit"):
        run(question())


def test_a_task_that_was_started_in_a_block_stays_in_it(cached: Watch) -> None:
    """It has a copy of the context, as with every context variable."""

    async def question() -> None:
        with disabled():
            task = asyncio.create_task(Author.objects.acount())
        await task
        await Author.objects.acount()

    with cached.expect(OFF, "hit"):
        run(question())


def test_a_block_holds_in_a_coroutine_that_it_runs(cached: Watch) -> None:
    async def question() -> None:
        await Author.objects.acount()

    with cached.expect(OFF), disabled():
        async_to_sync(question)()


def test_a_block_entered_in_a_thread_of_sync_to_async_ends_there(cached: Watch) -> None:
    def block() -> None:
        with disabled():
            ask()

    async def question() -> None:
        await sync_to_async(block)()
        await Author.objects.acount()

    with cached.expect(OFF, "hit"):
        run(question())


def test_a_context_that_was_copied_before_is_not_concerned(cached: Watch) -> None:
    before = contextvars.copy_context()
    with disabled(), cached.expect("hit"):
        before.run(ask)


def test_the_package_has_the_name(cached: Watch) -> None:
    assert ormcache.disabled is bypasses.disabled
