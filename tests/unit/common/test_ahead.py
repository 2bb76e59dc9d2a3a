"""Results that threads compute ahead."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from quantharm.common.ahead import results_ahead


def test_results_come_in_order_and_few_are_held():
    """While a result is in use, the next `ahead` are made and no more: memory is flat in the number of items."""
    started, given = [], []

    def square(item):
        started.append(item)
        return item * item

    with ThreadPoolExecutor(3) as pool:
        for result in results_ahead(pool, square, range(10), 3):
            given.append(result)
            assert len(started) <= len(given) + 3
    assert given == [i * i for i in range(10)]
    assert sorted(started) == list(range(10))


def test_an_error_comes_in_its_place():
    with ThreadPoolExecutor(2) as pool:
        results = results_ahead(pool, lambda item: 1 // item, [1, 0, 1], 2)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_nothing_comes_of_nothing():
    with ThreadPoolExecutor(1) as pool:
        assert list(results_ahead(pool, str, [], 2)) == []
