"""Work that threads do ahead of the one that needs its results."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_ahead(
    pool: concurrent.futures.ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """function(item) of each item, in order; while the caller works on one, threads compute the next `ahead` of them.

    No more results than that exist at a time, so memory does not grow with the number of items. (Executor.map computes
    all of them at once.) An exception is raised where its result would be given.
    """
    rest = iter(items)
    computed = collections.deque(pool.submit(function, item) for item in itertools.islice(rest, ahead))
    while computed:
        result = computed.popleft().result()
        computed.extend(pool.submit(function, item) for item in itertools.islice(rest, 1))
        yield result
