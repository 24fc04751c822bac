"""Factories of the bookshop and its neighbours.

They write to the default database, or to that of the enclosing `using`:

    with using("mariadb"):
        book = BookFactory(tags=[TagFactory()])
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import factory
from django.db import models

from tests.models import (
    Author,
    AuthorProfile,
    Book,
    Category,
    City,
    Comment,
    Continent,
    Contribution,
    Country,
    ItalianRestaurant,
    Place,
    Publisher,
    Restaurant,
    Tag,
)

_database = ContextVar("_database", default="default")


@contextmanager
def using(alias: str) -> Iterator[None]:
    """Let the factories write to this database."""
    token = _database.set(alias)
    try:
        yield
    finally:
        _database.reset(token)


class ModelFactory(factory.django.DjangoModelFactory):
    class Meta:
        abstract = True
        # What a factory does after creation is saved by what it does.
        skip_postgeneration_save = True

    @classmethod
    def _get_manager(cls, model_class: type[models.Model]) -> models.QuerySet[Any]:
        return model_class._default_manager.using(_database.get())


class ContinentFactory(ModelFactory):
    class Meta:
        model = Continent

    name = factory.Sequence("Continent {}".format)


class CountryFactory(ModelFactory):
    class Meta:
        model = Country

    name = factory.Sequence("Country {}".format)
    continent = factory.SubFactory(ContinentFactory)


class CityFactory(ModelFactory):
    class Meta:
        model = City

    name = factory.Sequence("City {}".format)
    country = factory.SubFactory(CountryFactory)


class PublisherFactory(ModelFactory):
    class Meta:
        model = Publisher

    name = factory.Sequence("Publisher {}".format)
    city = factory.SubFactory(CityFactory)


class AuthorFactory(ModelFactory):
    class Meta:
        model = Author

    name = factory.Sequence("Author {}".format)


class AuthorProfileFactory(ModelFactory):
    class Meta:
        model = AuthorProfile

    author = factory.SubFactory(AuthorFactory)
    biography = factory.Sequence("Biography {}".format)


class TagFactory(ModelFactory):
    class Meta:
        model = Tag

    name = factory.Sequence("Tag {}".format)


class BookFactory(ModelFactory):
    class Meta:
        model = Book

    title = factory.Sequence("Book {}".format)
    author = factory.SubFactory(AuthorFactory)

    @factory.post_generation
    def tags(self: Book, create: bool, tags: Iterable[Tag] | None, **kwargs: Any) -> None:
        if tags:
            self.tags.set(tags)


class ContributionFactory(ModelFactory):
    class Meta:
        model = Contribution

    book = factory.SubFactory(BookFactory)
    author = factory.SubFactory(AuthorFactory)


class CommentFactory(ModelFactory):
    class Meta:
        model = Comment

    text = factory.Sequence("Comment {}".format)
    subject = factory.SubFactory(BookFactory)


class PlaceFactory(ModelFactory):
    class Meta:
        model = Place

    name = factory.Sequence("Place {}".format)


class RestaurantFactory(PlaceFactory):
    class Meta:
        model = Restaurant


class ItalianRestaurantFactory(RestaurantFactory):
    class Meta:
        model = ItalianRestaurant


class CategoryFactory(ModelFactory):
    class Meta:
        model = Category

    name = factory.Sequence("Category {}".format)
