"""A collection of questions to the ORM, one for each way in which a query can reach a table."""

import datetime
from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db.models import (
    Avg,
    Case,
    CharField,
    Count,
    Exists,
    ExpressionWrapper,
    F,
    FilteredRelation,
    IntegerField,
    Max,
    Min,
    OuterRef,
    Prefetch,
    Q,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import (
    Cast,
    Coalesce,
    Concat,
    Greatest,
    Length,
    Lower,
    Rank,
    RowNumber,
    TruncMonth,
)

from tests.models import (
    Author,
    AuthorBooks,
    AuthorProfile,
    Book,
    Category,
    CheapBook,
    City,
    Comment,
    CompositeKey,
    Continent,
    Contribution,
    Country,
    Generated,
    ItalianRestaurant,
    Legacy,
    Place,
    Publisher,
    Restaurant,
    Tag,
)

AUTHOR, BOOK, TAG = (model._meta.db_table for model in (Author, Book, Tag))

books_of_author = Book.objects.filter(author=OuterRef("pk"))
tags_of_book = Tag.objects.filter(books=OuterRef("pk"))
pages_of_author = books_of_author.order_by("pages").values("pages")[:1]
city_of_publisher = City.objects.filter(publishers=OuterRef("publisher")).values("name")[:1]
in_europe = Publisher.objects.filter(city__country__continent__name="Europe")
famous = Author.objects.filter(profile__biography__contains="famous")
tagged = Book.objects.filter(tags__name="new")


QUERIES: dict[str, Callable[[], Any]] = {
    # Plain.
    "all": lambda: list(Book.objects.all()),
    "get": lambda: Book.objects.get(pk=1),
    "filter": lambda: list(Book.objects.filter(title="a", pages__gt=3)),
    "filter on nothing": lambda: list(Book.objects.filter(Q())),
    "count": lambda: Book.objects.count(),
    "exists": lambda: Book.objects.exists(),
    "contains": lambda: Book.objects.contains(Book.objects.get(pk=1)),
    "first and last": lambda: [Book.objects.first(), Book.objects.last()],
    "latest": lambda: Book.objects.latest("pages"),
    "in_bulk": lambda: Book.objects.in_bulk([1, 2]),
    "in_bulk by another field": lambda: Tag.objects.in_bulk(["new"], field_name="name"),
    "only and defer": lambda: [b.pages for b in Book.objects.only("title")],
    "refresh_from_db": lambda: Book(pk=1).refresh_from_db(),
    "dates": lambda: list(Author.objects.dates("born", "year")),
    "datetimes": lambda: list(Book.objects.datetimes("published", "month")),
    "quoted table": lambda: list(Legacy.objects.filter(name="a")),
    "proxy": lambda: list(CheapBook.objects.filter(title="a")),
    "generated field": lambda: list(Generated.objects.filter(area__gt=3, upper_name="A")),
    "composite key": lambda: CompositeKey.objects.filter(pk=(1, 1)).first(),
    "composite keys": lambda: list(CompositeKey.objects.filter(pk__in=[(1, 1), (2, 2)])),
    "composite key and its relation": lambda: list(
        CompositeKey.objects.filter(book__author__name="a").order_by("pk")
    ),
    "composite key from afar": lambda: list(Book.objects.filter(copies__pk=(1, 1))),
    "explicit columns": lambda: list(Book.objects.values("title", "author_id")),
    "foreign key without a join": lambda: list(Book.objects.values_list("author", flat=True)),
    "key of a relation": lambda: list(Book.objects.filter(author__pk=1)),
    # Joins.
    "join": lambda: list(Book.objects.filter(author__name="a")),
    "joins, four deep": lambda: list(
        Book.objects.filter(publisher__city__country__continent__name="a")
    ),
    "reverse join": lambda: list(Author.objects.filter(books__title="a")),
    "reverse joins, four deep": lambda: list(
        Continent.objects.filter(countries__cities__publishers__books__title="a")
    ),
    "one to one": lambda: list(Author.objects.filter(profile__biography="a")),
    "one to one, reverse": lambda: list(AuthorProfile.objects.filter(author__name="a")),
    "isnull through a relation": lambda: list(Book.objects.filter(publisher__city__isnull=True)),
    "join for a value": lambda: list(Book.objects.values("author__name")),
    "join for a named value": lambda: list(
        Book.objects.values_list("publisher__city__name", named=True)
    ),
    "self join": lambda: list(Category.objects.filter(parent__parent__name="a")),
    "self join, reverse": lambda: list(Category.objects.filter(children__children__name="a")),
    "ordering by a relation": lambda: list(Book.objects.order_by("author__name")),
    "ordering by a distant relation": lambda: list(
        Book.objects.order_by("-publisher__city__name")
    ),
    "ordering by an expression over a relation": lambda: list(
        Book.objects.order_by(Lower("author__name").desc(nulls_last=True))
    ),
    "distinct and ordering by a relation": lambda: list(
        Book.objects.order_by("author__name").distinct()
    ),
    "F over a relation": lambda: list(Book.objects.filter(title=F("author__name"))),
    "F over a relation in an annotation": lambda: list(
        Book.objects.annotate(x=Concat(F("title"), Value(" "), F("author__name")))
    ),
    "F in a comparison of two relations": lambda: list(
        Book.objects.filter(author__name=F("publisher__city__name"))
    ),
    "alias": lambda: list(Book.objects.alias(x=F("author__name")).filter(x="a")),
    "transform of a relation's column": lambda: list(Book.objects.filter(author__born__year=1900)),
    # Loading along.
    "select_related": lambda: list(Book.objects.select_related("author")),
    "select_related, deep": lambda: list(
        Book.objects.select_related("publisher__city__country__continent")
    ),
    "select_related, reverse": lambda: list(Author.objects.select_related("profile")),
    "select_related and only": lambda: list(
        Book.objects.select_related("author").only("title", "author__name")
    ),
    "prefetch of a foreign key": lambda: list(Book.objects.prefetch_related("author")),
    "prefetch, reverse": lambda: list(Author.objects.prefetch_related("books")),
    "prefetch of many to many": lambda: list(Book.objects.prefetch_related("tags")),
    "prefetch of many to many, reverse": lambda: list(Tag.objects.prefetch_related("books")),
    "prefetch through": lambda: list(Book.objects.prefetch_related("contributors")),
    "prefetch of a generic relation": lambda: list(Book.objects.prefetch_related("comments")),
    "prefetch of a generic foreign key": lambda: list(Comment.objects.prefetch_related("subject")),
    "prefetch, nested": lambda: list(Author.objects.prefetch_related("books__tags", "profile")),
    "prefetch of a query": lambda: list(
        Author.objects.prefetch_related(
            Prefetch("books", Book.objects.filter(publisher__city__name="a"), to_attr="x")
        )
    ),
    "related object": lambda: Book.objects.get(pk=1).author,
    "related object, reverse": lambda: Author.objects.get(pk=1).profile,
    "related objects": lambda: list(Author.objects.get(pk=1).books.all()),
    "related objects by many to many": lambda: list(Book.objects.get(pk=1).tags.all()),
    "generic foreign key": lambda: Comment.objects.get(pk=1).subject,
    # Many to many.
    "many to many": lambda: list(Book.objects.filter(tags__name="a")),
    "many to many by key": lambda: list(Book.objects.filter(tags=1)),
    "many to many, reverse": lambda: list(Tag.objects.filter(books__title="a")),
    "many to many, reverse, by key": lambda: list(Tag.objects.filter(books=1)),
    "many to many through": lambda: list(Book.objects.filter(contributors__name="a")),
    "many to many through, its columns": lambda: list(
        Book.objects.filter(contributions__role="a")
    ),
    "many to many through, reverse": lambda: list(
        Author.objects.filter(contributed_books__title="a")
    ),
    "many to many, both": lambda: list(
        Book.objects.filter(tags__name="a").filter(contributors__name="b")
    ),
    "many to many of auth": lambda: list(Permission.objects.filter(group__user__username="a")),
    "excluded many to many": lambda: list(Book.objects.exclude(tags__name="a")),
    "excluded many to many, reverse": lambda: list(Tag.objects.exclude(books__author__name="a")),
    "excluded reverse join": lambda: list(
        Author.objects.exclude(books__publisher__city__name="a")
    ),
    "excluded twice": lambda: list(Author.objects.exclude(~Q(books__title="a"))),
    "negated within or": lambda: list(
        Book.objects.filter(~Q(tags__name="a") | Q(author__name="b"))
    ),
    "xor": lambda: list(Book.objects.filter(Q(author__name="a") ^ Q(publisher__name="b"))),
    "generic relation": lambda: list(Book.objects.filter(comments__text="a")),
    "generic relation, excluded": lambda: list(Book.objects.exclude(comments__text="a")),
    "generic relation, counted": lambda: list(Book.objects.annotate(n=Count("comments"))),
    # Inheritance.
    "child": lambda: list(ItalianRestaurant.objects.all()),
    "child by a parent's column": lambda: list(ItalianRestaurant.objects.filter(name="a")),
    "child, its own column only": lambda: list(
        ItalianRestaurant.objects.values_list("serves_pizza", flat=True)
    ),
    "child, counted": lambda: Restaurant.objects.count(),
    "parent": lambda: list(Place.objects.all()),
    "parent by a child's column": lambda: list(Place.objects.filter(restaurant__stars=3)),
    "parent by a grandchild's column": lambda: list(
        Place.objects.filter(restaurant__italianrestaurant__serves_pizza=True)
    ),
    "parent with its child": lambda: list(Place.objects.select_related("restaurant")),
    "parent without a child": lambda: list(Place.objects.filter(restaurant__isnull=True)),
    "child of a parent": lambda: Place.objects.get(pk=1).restaurant,
    # Subqueries.
    "in": lambda: list(Book.objects.filter(author__in=famous)),
    "in, of values": lambda: list(Book.objects.filter(title__in=famous.values("name"))),
    "in, nested": lambda: list(
        Tag.objects.filter(books__in=Book.objects.filter(author__in=famous).order_by())
    ),
    "not in": lambda: list(Book.objects.exclude(publisher__in=in_europe)),
    "in, sliced": lambda: list(Book.objects.filter(author__in=famous.order_by("name")[:3])),
    "equal to a query": lambda: list(Book.objects.filter(author=famous.order_by("pk")[:1])),
    "greater than a query": lambda: list(
        Book.objects.filter(pages__gt=tagged.values("pages").order_by("pages")[:1])
    ),
    "exists as a filter": lambda: list(Author.objects.filter(Exists(books_of_author))),
    "not exists": lambda: list(Author.objects.filter(~Exists(books_of_author))),
    "exists, combined": lambda: list(
        Author.objects.filter(Exists(books_of_author) | Q(profile__biography="a"))
    ),
    "exists, nested": lambda: list(
        Author.objects.filter(
            Exists(books_of_author.filter(Exists(tags_of_book.filter(name="a"))))
        )
    ),
    "exists as an annotation": lambda: list(Author.objects.annotate(x=Exists(books_of_author))),
    "subquery as an annotation": lambda: list(
        Author.objects.annotate(x=Subquery(pages_of_author))
    ),
    "subquery as an annotation, filtered": lambda: list(
        Author.objects.annotate(x=Subquery(pages_of_author)).filter(x__gt=3)
    ),
    "subquery plus one": lambda: list(Author.objects.annotate(x=Subquery(pages_of_author) + 1)),
    "subquery in an expression wrapper": lambda: list(
        Author.objects.annotate(
            x=ExpressionWrapper(Subquery(pages_of_author) * F("id"), output_field=IntegerField())
        )
    ),
    "subquery in Coalesce": lambda: list(
        Author.objects.annotate(x=Coalesce(Subquery(pages_of_author), 0))
    ),
    "subquery in Coalesce in a filter": lambda: list(
        Author.objects.filter(pk__gt=Coalesce(Subquery(pages_of_author), 0))
    ),
    "subquery in Greatest and Cast": lambda: list(
        Author.objects.annotate(x=Cast(Greatest(Subquery(pages_of_author), F("id")), CharField()))
    ),
    "subquery in a subquery": lambda: list(
        Author.objects.annotate(
            x=Subquery(books_of_author.annotate(c=Subquery(city_of_publisher)).values("c")[:1])
        )
    ),
    "subquery with an aggregate": lambda: list(
        Author.objects.annotate(
            x=Subquery(books_of_author.values("author").annotate(n=Count("tags")).values("n")[:1])
        )
    ),
    "ordering by a subquery": lambda: list(Author.objects.order_by(Subquery(pages_of_author))),
    "ordering by an annotated subquery": lambda: list(
        Author.objects.annotate(x=Subquery(pages_of_author)).order_by("x")
    ),
    "ordering by exists": lambda: list(Author.objects.order_by(Exists(books_of_author).desc())),
    "Case with a query": lambda: list(
        Book.objects.annotate(x=Case(When(author__in=famous, then=1), default=0))
    ),
    "Case with exists": lambda: list(
        Author.objects.annotate(
            x=Case(When(Exists(books_of_author), then=Value("y")), default=Value("n"))
        )
    ),
    "Case with a subquery as its value": lambda: list(
        Author.objects.annotate(x=Case(When(name="a", then=Subquery(pages_of_author)), default=0))
    ),
    "Case in the order": lambda: list(
        Book.objects.order_by(Case(When(publisher__in=in_europe, then=0), default=1))
    ),
    "filter by a condition as a value": lambda: list(
        Author.objects.annotate(x=Q(pk__in=Book.objects.values("author")))
    ),
    # Aggregates.
    "aggregate": lambda: Book.objects.aggregate(Max("pages"), Avg("price")),
    "aggregate over a relation": lambda: Author.objects.aggregate(n=Count("books__tags")),
    "aggregate with a filter": lambda: Author.objects.aggregate(
        n=Count("books", filter=Q(books__publisher__in=in_europe))
    ),
    "aggregate of a subquery": lambda: Author.objects.annotate(
        x=Subquery(pages_of_author)
    ).aggregate(Sum("x")),
    "aggregate of a slice": lambda: Book.objects.order_by("author__name")[:3].aggregate(
        Sum("pages")
    ),
    "aggregate of distinct rows": lambda: Book.objects.distinct().aggregate(Count("author")),
    "count of distinct joined rows": lambda: (
        Book.objects.filter(tags__name="a").distinct().count()
    ),
    "count of a slice": lambda: Book.objects.filter(author__name="a")[:2].count(),
    "count with an unused annotation": lambda: Book.objects.annotate(n=Count("tags")).count(),
    "annotated count": lambda: list(Author.objects.annotate(n=Count("books"))),
    "annotated count with a filter": lambda: list(
        Author.objects.annotate(n=Count("books", filter=Q(books__tags__name="a")))
    ),
    "annotated count with a query as its filter": lambda: list(
        Author.objects.annotate(n=Count("pk", filter=Q(pk__in=Book.objects.values("author"))))
    ),
    "two aggregates": lambda: list(Book.objects.annotate(n=Count("tags"), m=Max("comments__id"))),
    "having": lambda: list(Author.objects.annotate(n=Count("books__tags")).filter(n__gt=1)),
    "having with a query": lambda: list(
        Author.objects.annotate(n=Max("books__pages")).filter(n__in=tagged.values("pages"))
    ),
    "group by": lambda: list(Book.objects.values("publisher__name").annotate(n=Count("pk"))),
    "aggregate over aggregate": lambda: Author.objects.annotate(n=Count("books")).aggregate(
        Min("n")
    ),
    "aggregate in the order": lambda: list(
        Author.objects.annotate(n=Count("books__tags")).order_by("n")
    ),
    # Combinations.
    "union": lambda: list(Author.objects.values("name").union(Tag.objects.values("name"))),
    "union of joins": lambda: list(
        Book.objects.filter(author__name="a").union(Book.objects.filter(tags__name="b"))
    ),
    "union, ordered and sliced": lambda: list(
        Author.objects.values("name").union(Tag.objects.values("name")).order_by("name")[:2]
    ),
    "union, counted": lambda: (
        Author.objects.values("name").union(Legacy.objects.values("name")).count()
    ),
    "union of three": lambda: list(
        City.objects.values("name").union(
            Country.objects.values("name"), Continent.objects.values("name"), all=True
        )
    ),
    "union with subqueries": lambda: list(
        Book.objects.filter(author__in=famous)
        .values("title")
        .union(Publisher.objects.filter(pk__in=in_europe).values("name"))
    ),
    "union as a subquery": lambda: list(
        Author.objects.filter(
            name__in=Tag.objects.values("name").union(City.objects.values("name"))
        )
    ),
    "intersection": lambda: list(
        Book.objects.filter(author__name="a").intersection(Book.objects.filter(tags=1))
    ),
    "difference": lambda: list(
        Author.objects.values("name").difference(City.objects.values("name"))
    ),
    "or of two queries": lambda: list(
        Book.objects.filter(author__name="a") | Book.objects.filter(publisher__name="b")
    ),
    "and of two queries": lambda: list(
        Book.objects.filter(author__name="a") & Book.objects.filter(publisher__name="b")
    ),
    # Filtered relations.
    "filtered relation": lambda: list(
        Author.objects.annotate(
            new=FilteredRelation("books", condition=Q(books__pages__gt=3))
        ).filter(new__title="a")
    ),
    "filtered relation over a relation": lambda: list(
        Author.objects.annotate(
            new=FilteredRelation("books", condition=Q(books__publisher=1))
        ).filter(new__publisher__name="a")
    ),
    "filtered relation, aggregated": lambda: list(
        Author.objects.annotate(
            new=FilteredRelation("books", condition=Q(books__pages__gt=3)),
            n=Count("new__tags"),
        )
    ),
    "filtered relation, loaded along": lambda: list(
        Book.objects.annotate(
            who=FilteredRelation("author", condition=Q(author__name="a"))
        ).select_related("who")
    ),
    # Windows.
    "window": lambda: list(Book.objects.annotate(x=Window(Rank(), order_by="pages"))),
    "window over a relation": lambda: list(
        Book.objects.annotate(
            x=Window(RowNumber(), partition_by="author__name", order_by="publisher__name")
        )
    ),
    "window, filtered": lambda: list(
        Book.objects.annotate(x=Window(Max("pages"), partition_by="author__name")).filter(x__gt=3)
    ),
    "window with a subquery": lambda: list(
        Author.objects.annotate(
            x=Window(RowNumber(), order_by=[Subquery(pages_of_author), Length("name")])
        )
    ),
    # Written by hand.
    "extra table": lambda: list(
        Book.objects.extra(tables=[AUTHOR], where=[f"{AUTHOR}.id = {BOOK}.author_id"])
    ),
    "extra where with a subquery": lambda: list(
        Book.objects.extra(where=[f"{BOOK}.author_id IN (SELECT id FROM {AUTHOR})"])
    ),
    "extra select with a subquery": lambda: list(
        Book.objects.extra(select={"n": f"(SELECT COUNT(*) FROM {TAG} AS t)"})
    ),
    "extra order": lambda: list(Book.objects.extra(order_by=["-title"])),
    "RawSQL as an annotation": lambda: list(
        Book.objects.annotate(x=RawSQL(f'(SELECT MAX(name) FROM "{TAG}" WHERE id > %s)', [0]))
    ),
    "RawSQL as a filter": lambda: list(
        Book.objects.filter(author__in=RawSQL(f"select id from {AUTHOR.upper()}", []))
    ),
    "RawSQL with a join": lambda: list(
        Book.objects.annotate(
            x=RawSQL(f"(SELECT 1 FROM {TAG} t, {AUTHOR} a JOIN {BOOK} b ON a.id = b.id)", [])
        )
    ),
    "RawSQL with WITH": lambda: list(
        Book.objects.annotate(
            x=RawSQL(f"(WITH names(n) AS (SELECT name FROM {TAG}) SELECT MAX(n) FROM names)", [])
        )
    ),
    # Beyond the bookshop.
    "view": lambda: list(AuthorBooks.objects.filter(books__gt=0)),
    "view, joined": lambda: list(AuthorBooks.objects.filter(author__profile__biography="a")),
    "view from afar": lambda: list(Author.objects.filter(authorbooks__books=1)),
    "permissions": lambda: User(pk=1, is_active=True).get_all_permissions(),
    "content type": lambda: ContentType.objects.get(app_label="tests", model="book"),
    "groups": lambda: list(Group.objects.filter(permissions__content_type__model="book")),
    "truncated dates": lambda: list(Book.objects.annotate(m=TruncMonth("published")).values("m")),
    "contributions": lambda: list(
        Contribution.objects.filter(
            book__in=tagged, author__born__gt=datetime.date(1900, 1, 1)
        ).order_by("author__profile__biography")
    ),
}
