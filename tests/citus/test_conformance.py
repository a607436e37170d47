"""LangGraph's own conformance suite on distributed tables."""

from tests.conformance.test_conformance import test_a_capability_passes_whole

__all__ = ["test_a_capability_passes_whole"]
