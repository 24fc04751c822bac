from tests.marks import on_caches, on_databases
from tests.models import Author
from tests.watching import Watch


@on_databases(transaction=True)
@on_caches()
def test_get(cached: Watch, using: str, cache):
    author = Author.objects.using(using).create(name="a")
    q = lambda: Author.objects.using(using).get(pk=author.pk).name
    if cache == "database" and using == "default":
        assert cached.call(q) == ("a", ["no usable cache"])
        return
    assert cached.warm(q) == "a"
    Author.objects.using(using).filter(pk=author.pk).update(name="b")
    assert cached.warm(q) == "b"
