"""Faults of production, injected while every operation is under load: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults import matrix
from tests.faults.bed import has_standbys
from tests.faults.load import LOADS
from tests.faults.matrix import TRANSIENT_ERRORS, Cell, TransientError, name_of

# Busy machines take their time; that a call may last longer than it should is no failure of what is tested here.
RETRY_SECONDS = 60.0

SLICE: list[tuple[TransientError, str]] = [
    (matrix.closed_while_idle, "put"),
    (matrix.terminated_in_a_statement, "list"),
    (matrix.answers_lost, "pipeline"),
    (matrix.answers_lost, "put_writes"),
    (matrix.serialization_failures, "get"),
    (matrix.only_reads, "put_writes"),
    (matrix.server_crashed, "pipeline"),
]

needs_standby = pytest.mark.skipif(not has_standbys(), reason="pg_basebackup is missing")


def check(cell: Cell) -> None:
    """Nothing lost, nothing surfaced, and everything that was tried was acknowledged in the end."""
    assert (cell.lost, cell.errors) == (0, {}), cell
    assert cell.acknowledged == cell.tried > 0


def test_one_fault_of_each_kind_loses_nothing_and_is_not_noticed() -> None:
    """Lost connections, lost answers, conflicts, a demoted server and a crash, each under one kind of load."""
    with matrix.bed() as bed:
        for fault, operation in SLICE:
            cell = asyncio.run(matrix.run_cell(bed, fault, operation, 1, RETRY_SECONDS))
            check(cell)
            assert cell.retries > 0 or fault is matrix.closed_while_idle


@needs_standby
def test_a_failover_loses_nothing_and_service_resumes_by_itself() -> None:
    """The server is killed for good under load; the URL names its standby too, which is promoted."""
    for cell in matrix.run([matrix.failover], ["pipeline"], injections=1, retry_timeout=RETRY_SECONDS):
        check(cell)
        assert cell.retries > 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", TRANSIENT_ERRORS, ids=name_of)
def test_every_fault_under_every_load(fault: TransientError) -> None:
    """The whole matrix, two injections in each cell."""
    if fault is matrix.failover and not has_standbys():
        pytest.skip("pg_basebackup is missing")
    cells = matrix.run([fault], injections=2, retry_timeout=RETRY_SECONDS)

    assert [cell.operation for cell in cells] == list(LOADS)
    for cell in cells:
        check(cell)


@pytest.mark.slow
def test_three_crashes_and_a_failover_in_one_run_lose_nothing() -> None:
    """One load goes on through all of them."""
    if not has_standbys():
        pytest.skip("pg_basebackup is missing")
    with matrix.bed(standby=True) as bed:
        cell = asyncio.run(matrix.run_cell(bed, _in_turn(), "pipeline", 4, RETRY_SECONDS))
    check(cell)


def _in_turn() -> TransientError:
    left = [matrix.failover, matrix.server_crashed, matrix.server_crashed, matrix.server_crashed]

    async def next_one(bed: matrix.Bed, load: matrix.Load) -> None:
        await left.pop()(bed, load)

    return next_one
