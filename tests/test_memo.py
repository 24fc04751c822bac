"""Facts about `ormcache.memo`."""

from ormcache.memo import Memo


def test_what_is_known_stays_while_the_basis_is_the_same() -> None:
    memo: Memo[str, int] = Memo()
    basis = (object(), 1)
    memo.under(*basis)["a"] = 1
    assert memo.under(*basis) == {"a": 1}


def test_another_basis_begins_with_nothing_and_the_old_dict_is_left_to_its_holder() -> None:
    memo: Memo[str, int] = Memo()
    old = memo.under(1)
    new = memo.under(2)
    old["a"] = 1
    assert new == {}
    assert memo.under(2) is new


def test_full_memo_is_emptied() -> None:
    memo: Memo[int, int] = Memo(limit=10)
    for number in range(100):
        memo.under("basis")[number] = number
        assert len(memo.under("basis")) <= 11
