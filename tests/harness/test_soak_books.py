"""The books of the fault tests: books that would miss a lost change prove nothing."""

import pytest

from support.books import Book, Hub, Verdict, Writers, content, word


def expected(key, place, data, op="UPDATE"):
    return [f"t {key}", place, word(op, {"id": key}, data)]


def arrived(dedup_key, key, data, taken=True, op="UPDATE", more=None):
    change = {"dedup_key": dedup_key, "op": op, "pk": {"id": key}, "data": data, "more": more}
    return [dedup_key, content(change), taken, [f"t {key}"], word(op, {"id": key}, data)]


@pytest.fixture
def books(tmp_path):
    """Two changes of one row, delivered."""
    class Books:
        transactions = [("a", "committed", [expected(1, 1, {"v": 1})]), ("b", "committed", [expected(1, 2, {"v": 2})])]
        requests = [("r", [arrived("k1", 1, {"v": 1}), arrived("k2", 1, {"v": 2})])]
        witness = {"a", "b"}
        disturbances = []

        def verdict(self):
            writers, hub = Book(tmp_path / "writers"), Book(tmp_path / "hub")
            for tx, ended, changes in self.transactions:
                writers.write(tx=tx, ended=ended, count=len(changes), changes=changes)
            for number, (name, changes) in enumerate(self.requests):
                hub.write(request=name, t=10.0 * number, batch="", changes=changes)
                hub.write(answered=name, t=10.0 * number + 1)
            return Verdict(Writers(writers.path, self.witness), Hub(hub.path), self.disturbances)
    return Books()


def test_books_that_agree(books):
    assert books.verdict().failures == {}


def test_a_change_that_never_came_is_lost(books):
    books.requests = [("r", [arrived("k1", 1, {"v": 1})])]

    assert books.verdict().failures == {"lost": 1}


def test_a_change_that_came_and_was_not_taken_is_lost(books):
    books.requests = [("r", [arrived("k1", 1, {"v": 1}), arrived("k2", 1, {"v": 2}, taken=False)])]

    assert books.verdict().failures == {"lost": 1}


def test_a_change_that_was_rolled_back_is_a_phantom_also_if_it_was_not_taken(books):
    books.transactions = [*books.transactions, ("c", "rolled back", [expected(1, 3, {"v": 3})])]
    books.requests = [*books.requests, ("s", [arrived("k3", 1, {"v": 3}, taken=False)])]

    assert books.verdict().failures == {"phantom": 1}


def test_a_commit_that_vanished_in_a_crash_must_not_have_been_sent(books):
    books.transactions = [books.transactions[0], ("b", "async", [expected(1, 2, {"v": 2})])]
    books.witness = {"a"}

    assert books.verdict().failures == {"phantom": 1}


def test_another_content_is_both(books):
    books.requests = [("r", [arrived("k1", 1, {"v": 1}), arrived("k2", 1, {"v": 3})])]

    assert books.verdict().failures == {"lost": 1, "phantom": 1}


def test_changes_of_one_row_turned_around(books):
    books.requests = [("r", [arrived("k2", 1, {"v": 2}), arrived("k1", 1, {"v": 1})])]

    assert books.verdict().failures == {"out of order": 1}


def test_a_repeat_with_another_content(books):
    books.requests = [*books.requests, ("s", [arrived("k1", 1, {"v": 1}, more="other")])]
    books.disturbances = [(0, 20)]

    assert books.verdict().failures == {"repeated with another content": 1}


def test_a_repeat_needs_a_reason_once_its_answer_was_out(books):
    books.requests = [*books.requests, ("s", [arrived("k1", 1, {"v": 1})])]
    assert books.verdict().failures == {"repeated without a reason": 1}


def test_a_repeat_with_a_reason(books):
    books.requests = [*books.requests, ("s", [arrived("k1", 1, {"v": 1})])]
    books.disturbances = [(5, 6)]

    verdict = books.verdict()
    assert (verdict.failures, len(verdict.hub.repeats)) == ({}, 1)


def test_a_commit_that_the_database_does_not_know(books):
    books.witness = {"a"}
    books.requests = [("r", [arrived("k1", 1, {"v": 1})])]

    assert books.verdict().failures == {"committed, but not in the database": 1}


def test_a_line_that_was_cut_off_by_a_kill_is_no_entry(books, tmp_path):
    (tmp_path / "hub").write_text('')
    verdict = books.verdict()
    with open(tmp_path / "hub", "a") as book:
        book.write('{"request": "x", "cha')

    assert Hub(tmp_path / "hub").requests == verdict.hub.requests == 1
