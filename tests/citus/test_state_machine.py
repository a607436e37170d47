"""Any sequence of calls leaves distributed tables with what LangGraph's in-memory saver holds."""

from tests.integration.test_state_machine import test_the_saver_holds_what_the_model_holds

__all__ = ["test_the_saver_holds_what_the_model_holds"]
