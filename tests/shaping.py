"""Compiles queries, with and without regard to their shapes, and runs none of them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from unittest import mock

from django.core.exceptions import EmptyResultSet
from django.db import models
from django.db.models import Value
from django.db.models.expressions import Col
from django.db.models.sql.compiler import SQLCompiler
from django.db.models.sql.constants import MULTI

from ormcache import shapes, tables, templates
from tests.exactness import exact
from tests.models import Author, Book


class Compiled(NamedTuple):
    """A query as Django compiles it, and what is known of it without."""

    shape: shapes.Shape | None
    sql: str | None
    """The text; None if the query cannot have rows."""
    params: Any
    """The parameters, by value and type."""
    tables: frozenset[str]
    state: Any
    """What the compiler leaves for those who read the rows."""
    template: templates.Template | None
    """By which others of its shape are looked up."""
    compiler: Any
    untouched: Any
    """Another compiler, which has not compiled it."""

    def by(self, template: templates.Template) -> tuple[str, str] | None:
        """The text and the parameters that ``template`` tells, as :attr:`params` has them."""
        known = template.compile(self.untouched)
        return known and (known[0], repr(exact(list(known[1]))))

    @property
    def leaves_template(self) -> bool:
        return self.template is not None

    @property
    def values(self) -> str:
        return repr(self.shape.values) if self.shape else ""


def compiling(question: Callable[[], Any]) -> list[Compiled]:
    """Ask, with every read answered by no rows; the queries that were read."""
    found: list[Compiled] = []

    def execute_sql(compiler: Any, result_type: str = MULTI, *args: Any, **kwargs: Any) -> Any:
        found.append(compiled(compiler))
        return iter([]) if result_type == MULTI else None

    # Some questions miss the rows, others cannot be compiled.
    with mock.patch.object(SQLCompiler, "execute_sql", execute_sql), suppress(Exception):
        question()
    return found


def compiled(compiler: Any) -> Compiled:
    shape = shapes.shape_of(compiler)
    untouched = compiler.query.chain().get_compiler(
        connection=compiler.connection, elide_empty=compiler.elide_empty
    )
    untouched.using = compiler.using
    try:
        sql, params, names, *_ = tables.compile_query(compiler)
    except EmptyResultSet:
        return Compiled(shape, None, None, frozenset(), None, None, compiler, untouched)
    state = _state(compiler)
    # As ormcache does it: after the query was compiled.
    template = shape and templates.make_template(shape, compiler, sql, params, tuple(names), ())
    return Compiled(
        shape,
        sql,
        repr(exact(list(params))),
        frozenset(names),
        state,
        template,
        compiler,
        untouched,
    )


def _state(compiler: Any) -> Any:
    return (
        [
            (_expression(expression), sql, repr(exact(list(params))), alias)
            for expression, (sql, params), alias in compiler.select
        ],
        _klass_info(compiler.klass_info),
        compiler.annotation_col_map,
        compiler.col_count,
        compiler.has_extra_select,
    )


def _expression(expression: Any) -> Any:
    kind = type(expression)
    if kind is Col:
        return (kind, expression.alias, id(expression.target), id(expression.output_field))
    field = type(expression.output_field)
    return (kind, exact(expression.value) if kind is Value else repr(expression), field)


def _klass_info(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _klass_info(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_klass_info(inner) for inner in value]
    # Bound methods of a field, and one function that does nothing.
    owner = getattr(value, "__self__", None)
    return (value.__qualname__, id(owner)) if callable(value) else value


def compiled_rows(rows: models.QuerySet[Any]) -> Compiled:
    (found,) = compiling(lambda: list(rows))
    return found


def shape_of(rows: models.QuerySet[Any]) -> shapes.Shape | None:
    return shapes.shape_of(rows.query.get_compiler(rows.db))


def key_of(rows: models.QuerySet[Any], first: models.QuerySet[Any] | None = None) -> str:
    """The key of a query in a process that met its shape with ``first`` or with itself."""
    own = shape_of(rows)
    compiler = (rows if first is None else first).query.chain().get_compiler(rows.db)
    shape = shapes.shape_of(compiler)
    assert own is not None and shape is not None and own.key == shape.key
    template = templates.make_template(shape, compiler, *compiler.as_sql(), (), ())
    assert template is not None
    return template.key(own.values)


def mirror(name: str, of: type[models.Model], fields: dict[str, Any], **meta: Any) -> Any:
    """A model that reads the table of another one."""
    options = type("Meta", (), {"app_label": "tests", "db_table": of._meta.db_table, **meta})
    return type(name, (models.Model,), {**fields, "Meta": options, "__module__": __name__})


def bookshop(
    foreign_key: type[models.ForeignKey] = models.ForeignKey,
    title: type[models.CharField] = models.CharField,
    key: models.Field | None = None,
    **ordering: Any,
) -> tuple[Any, Any]:
    key = key or models.BigAutoField(primary_key=True)
    author = mirror(
        "MirrorAuthor",
        Author,
        {"id": key, "name": models.CharField(max_length=100)},
        ordering=ordering.get("authors", ()),
    )
    fields = {
        "author": foreign_key(author, models.CASCADE, related_name="books"),
        "title": title(max_length=200),
        "pages": models.IntegerField(),
    }
    return author, mirror("MirrorBook", Book, fields, ordering=ordering.get("books", ()))


def know_content_types(using: str) -> None:
    """Building a query over a generic relation asks for its content type, once."""
    list(Book.objects.using(using).filter(comments__text="a")[:1])
