"""Public functions that choose their placement, given one all the same: what the tests vary."""

import contextlib
from unittest import mock

from softjax.compute import placement

_chosen = placement.given_or_chosen


@contextlib.contextmanager
def of_size(block_size):
    """Functions that are given no block size take this one."""
    given_or = lambda given, *of_problem: _chosen(block_size if given is None else given, *of_problem)
    with mock.patch.object(placement, "given_or_chosen", given_or):
        yield


def in_blocks(function):
    """The function with an argument `block_size`."""

    def of(*args, block_size=None, **options):
        with of_size(block_size):
            return function(*args, **options)

    return of
