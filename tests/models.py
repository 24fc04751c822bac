"""The models of the tests: a bookshop, and one model for each thing that is special.

All of them work on SQLite, PostgreSQL and MariaDB; `tests.postgres.models` has the rest.
"""

import django
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models.functions import Now, Upper

# A chain of foreign keys: Book → Publisher → City → Country → Continent.


class Continent(models.Model):
    name = models.CharField(max_length=100)


class Country(models.Model):
    name = models.CharField(max_length=100)
    continent = models.ForeignKey(Continent, models.CASCADE, related_name="countries")


class City(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.CASCADE, related_name="cities")


class Publisher(models.Model):
    name = models.CharField(max_length=100)
    city = models.ForeignKey(City, models.SET_NULL, null=True, related_name="publishers")


# The bookshop.


class Author(models.Model):
    name = models.CharField(max_length=100)
    born = models.DateField(null=True)


class AuthorProfile(models.Model):
    """The one side of a one-to-one relation."""

    author = models.OneToOneField(Author, models.CASCADE, related_name="profile")
    biography = models.TextField(default="")


class Tag(models.Model):
    name = models.CharField(max_length=50, unique=True)


class Book(models.Model):
    title = models.CharField(max_length=200)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")
    publisher = models.ForeignKey(Publisher, models.SET_NULL, null=True, related_name="books")
    pages = models.IntegerField(default=100)
    price = models.DecimalField(max_digits=8, decimal_places=2, default=10)
    published = models.DateTimeField(null=True)
    tags = models.ManyToManyField(Tag, related_name="books")
    contributors = models.ManyToManyField(
        Author, through="Contribution", related_name="contributed_books"
    )
    comments = GenericRelation("Comment")


class Contribution(models.Model):
    """The explicit table of a many-to-many relation."""

    book = models.ForeignKey(Book, models.CASCADE, related_name="contributions")
    author = models.ForeignKey(Author, models.CASCADE, related_name="contributions")
    role = models.CharField(max_length=50, default="editor")


class Comment(models.Model):
    """A comment on anything, by a generic foreign key."""

    text = models.TextField()
    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.BigIntegerField()
    subject = GenericForeignKey()


class CheapBookManager(models.Manager):
    def get_queryset(self):
        return super().get_queryset().filter(price__lt=10)


class CheapBook(Book):
    """A proxy: other rows, same table."""

    objects = CheapBookManager()

    class Meta:
        proxy = True


class AuthorBooks(models.Model):
    """A database view over Author and Book, created by `tests.apps`."""

    author = models.OneToOneField(Author, models.DO_NOTHING, primary_key=True)
    name = models.CharField(max_length=100)
    books = models.IntegerField()

    class Meta:
        managed = False
        db_table = "tests_author_books"


# Models that are stored in an unusual way.


class Place(models.Model):
    """The root of two levels of multi-table inheritance."""

    name = models.CharField(max_length=100)
    address = models.CharField(max_length=200, default="")


class Restaurant(Place):
    stars = models.IntegerField(default=0)


class ItalianRestaurant(Restaurant):
    serves_pizza = models.BooleanField(default=True)


class Category(models.Model):
    """A tree."""

    name = models.CharField(max_length=100)
    parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="children")


class Legacy(models.Model):
    """A table whose name has to be quoted."""

    name = models.CharField(max_length=100)

    class Meta:
        db_table = "LegacyTable"


class Note(models.Model):
    """A text that may be NULL as well as empty."""

    text = models.TextField(null=True)


class EveryField(models.Model):
    """Every kind of value that Django can store on all three databases; each may be NULL."""

    big_integer = models.BigIntegerField(null=True)
    binary = models.BinaryField(null=True)
    boolean = models.BooleanField(null=True)
    char = models.CharField(max_length=200, null=True)
    date = models.DateField(null=True)
    datetime = models.DateTimeField(null=True)
    decimal = models.DecimalField(max_digits=20, decimal_places=6, null=True)
    duration = models.DurationField(null=True)
    email = models.EmailField(null=True)
    file = models.FileField(null=True)
    file_path = models.FilePathField(null=True)
    float = models.FloatField(null=True)
    integer = models.IntegerField(null=True)
    ip_address = models.GenericIPAddressField(null=True)
    json = models.JSONField(null=True)
    positive_big_integer = models.PositiveBigIntegerField(null=True)
    positive_integer = models.PositiveIntegerField(null=True)
    positive_small_integer = models.PositiveSmallIntegerField(null=True)
    slug = models.SlugField(null=True)
    small_integer = models.SmallIntegerField(null=True)
    text = models.TextField(null=True)
    time = models.TimeField(null=True)
    url = models.URLField(null=True)
    uuid = models.UUIDField(null=True)


class UUIDKey(models.Model):
    """A primary key that the database does not make."""

    id = models.UUIDField(primary_key=True)
    name = models.CharField(max_length=100)


class CompositeKey(models.Model):
    """A primary key of two columns."""

    pk = models.CompositePrimaryKey("shelf", "position")
    shelf = models.IntegerField()
    position = models.IntegerField()
    book = models.ForeignKey(Book, models.CASCADE, related_name="copies")


class Generated(models.Model):
    """Columns that the database computes."""

    width = models.IntegerField()
    height = models.IntegerField()
    name = models.CharField(max_length=100, default="")
    area = models.GeneratedField(
        expression=models.F("width") * models.F("height"),
        output_field=models.IntegerField(),
        db_persist=True,
    )
    upper_name = models.GeneratedField(
        expression=Upper("name"),
        output_field=models.CharField(max_length=100),
        db_persist=True,
    )


class DatabaseDefault(models.Model):
    """Columns that the database fills in."""

    name = models.CharField(max_length=100, db_default="unnamed")
    number = models.IntegerField(db_default=7)
    created = models.DateTimeField(db_default=Now())


# Deletes that the database passes on by itself.

if django.VERSION >= (6, 1):

    class Grandparent(models.Model):
        name = models.CharField(max_length=100)

    class Parent(models.Model):
        name = models.CharField(max_length=100)
        grandparent = models.ForeignKey(Grandparent, models.DB_CASCADE, related_name="children")

    class Child(models.Model):
        name = models.CharField(max_length=100)
        parent = models.ForeignKey(Parent, models.DB_CASCADE, related_name="children")

    class Friend(models.Model):
        """Loses its parent, but stays."""

        name = models.CharField(max_length=100)
        parent = models.ForeignKey(Parent, models.DB_SET_NULL, null=True, related_name="friends")

    class Ward(models.Model):
        """Falls back to the grandparent with id 1; MariaDB cannot do that."""

        name = models.CharField(max_length=100)
        guardian = models.ForeignKey(
            Grandparent, models.DB_SET_DEFAULT, db_default=1, related_name="wards"
        )

        class Meta:
            required_db_features = {"supports_on_delete_db_default"}
