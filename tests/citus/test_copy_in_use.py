"""Copies of a thread that a run is storing to, on distributed tables: each is the thread as it was at one moment."""

from tests.integration.test_copy_in_use import test_a_copy_of_a_thread_in_use_is_whole

__all__ = ["test_a_copy_of_a_thread_in_use_is_whole"]
