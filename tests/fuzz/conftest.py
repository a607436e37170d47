"""Fuzzing: a slice of it in every run, as much as you like with `make fuzz CASES=...`; the cases are counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = "CHECKPOINT_STORE_FUZZ_CASES"
"""How many cases each test tries."""


class Hidden:
    """Arguments that Hypothesis shows as far as they let it: some raise when they are asked for anything."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __repr__(self) -> str:
        try:
            return repr(self.arguments)[:5000]
        except Exception as error:
            return f"<arguments whose repr raises {type(error).__name__}: {shown(self.arguments)}>"


def shown(value: Any, depth: int = 0) -> str:
    """Tell what a value is, without asking it."""
    if depth < 5 and type(value) in {list, tuple, dict}:
        parts = value.items() if type(value) is dict else value
        return f"{type(value).__name__}({', '.join(shown(part, depth + 1) for part in parts)})"
    return repr(value)[:100] if type(value) in {str, bytes, float, bool} else f"<{type(value).__name__}>"


class Fuzz:
    """Tries a test's body with generated arguments, and counts how the cases end.

    A test that only ever sees one ending proves nothing, so tests look at the counts.
    """

    def __init__(self) -> None:
        self.endings: Counter[str] = Counter()

    def __call__(self, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., str]], None]:
        """Try a function, which returns how each case has ended."""

        def run(function: Callable[..., str]) -> None:
            @settings(
                max_examples=int(os.environ.get(CASES, "100")),
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            )
            @given(st.tuples(*strategies).map(Hidden))
            def one(hidden: Hidden) -> None:
                self.endings[function(*hidden.arguments)] += 1

            one()

        return run


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Iterator[Fuzz]:
    """Tries cases, and tells at the end of the session how many there were."""
    fuzz = Fuzz()
    yield fuzz
    request.node.user_properties.append(("fuzz", dict(fuzz.endings)))


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many cases were tried, and how they ended."""
    tried = {
        report.nodeid.rpartition("::")[2]: endings
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, endings in getattr(report, "user_properties", ())
        if name == "fuzz" and report.when == "teardown"
    }
    if tried:
        terminalreporter.section("fuzzing")
        for name, endings in sorted(tried.items()):
            told = ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))
            terminalreporter.write_line(f"{name}: {sum(endings.values()):,} cases ({told})")
        terminalreporter.write_line(f"{sum(sum(endings.values()) for endings in tried.values()):,} cases in all")
