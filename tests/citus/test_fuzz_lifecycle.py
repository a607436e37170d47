"""Whatever a caller passes to removals, copies, lists and locks of distributed tables: exactly that is done."""

from tests.fuzz.conftest import fuzz, sql
from tests.fuzz.test_fuzz_lifecycle import (
    archive,
    test_any_copy,
    test_any_list_of_threads,
    test_any_lock,
    test_any_pruning,
    test_any_runs,
    test_any_sweep,
    test_any_thread_to_measure,
    test_any_transfer,
)

__all__ = [
    "archive",
    "fuzz",
    "sql",
    "test_any_copy",
    "test_any_list_of_threads",
    "test_any_lock",
    "test_any_pruning",
    "test_any_runs",
    "test_any_sweep",
    "test_any_thread_to_measure",
    "test_any_transfer",
]
