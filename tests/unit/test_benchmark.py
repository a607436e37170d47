"""What the benchmark counts and sums up, without a server."""

from __future__ import annotations

from benchmarks.round_trips import Conversation, RoundTrips
from benchmarks.summary import table


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + (len(body) + 4).to_bytes(4) + body


STARTUP = (8).to_bytes(4) + (196608).to_bytes(4)
READY = message("Z", b"I")
EXECUTE = message("B", b"\0" * 300) + message("E", b"\0" * 5)
SYNC = message("S")


def counted(*pieces: tuple[str, bytes]) -> int:
    """The round trips of a connection on which the client (>) and the server (<) send this, once it is open."""
    total = RoundTrips()
    conversation = Conversation(total)
    for direction, piece in ((">", STARTUP), ("<", message("R", b"\0\0\0\0") + READY), *pieces):
        (conversation.asked if direction == ">" else conversation.answered)(piece)
    return total.count


def test_a_statement_is_a_round_trip_however_it_is_cut() -> None:
    """The start of the connection is none, and neither is its end."""
    asked, answer = EXECUTE + SYNC, message("D", b"\0" * 500) + READY
    assert counted() == 0
    for cut in range(1, len(asked)):
        pieces = [(">", asked[:cut]), (">", asked[cut:]), ("<", answer[: cut + 1]), ("<", answer[cut + 1 :])]
        assert counted(*pieces, *pieces) == 2, cut
    assert counted((">", message("Q", b"SELECT 1\0")), ("<", answer), (">", message("X"))) == 1


def test_what_is_sent_before_the_answers_are_complete_is_the_same_round_trip() -> None:
    pipelined = [
        (">", EXECUTE + SYNC),
        (">", EXECUTE + SYNC),
        ("<", READY),
        (">", EXECUTE + SYNC),
        ("<", READY + READY),
    ]
    assert counted(*pipelined) == 1
    assert counted(*pipelined, (">", EXECUTE + SYNC), ("<", READY)) == 2


def test_a_flush_is_waited_for_as_well() -> None:
    """As asyncpg prepares a statement."""
    prepare = (">", message("P", b"a\0SELECT 1\0\0\0") + message("D", b"Sa\0") + message("H"))
    assert counted(prepare, ("<", message("1") + message("t", b"\0\0")), (">", EXECUTE + SYNC), ("<", READY)) == 2


def document(ratio: float, mode: str, ours: float) -> dict[str, object]:
    speed = {"loop_ms": [10.0, 11.0], "select_us": [50.0, 50.0], "commit_ms": [0.2, 0.3]}

    def result(measure: str, unit: str, **row: object) -> dict[str, object]:
        row = {"ours": "ours", "other": mode, "role": "stock", "ratio": ratio, "target": None} | row
        contenders = {"ours": {"median": ours}}
        return {"measure": measure, "unit": unit, "better": "lower", "contenders": contenders, "comparison": [row]}

    results = [
        result("aput", "ms", target="≤ 0.72"),
        result("turn 400", "ms", target="≤ 0.90", role="reference", other="in memory"),
        result("setup: round trips", "", target="ours ≤ 1.00"),
        result("disk", "MB", target="≤ 1/22"),
        result("a figure without a target", "ms"),
    ]
    return {"date": "2026-11-29", "cpus": 2, "speed": speed, "results": results}


def test_a_summary_has_the_median_and_the_spread_of_each_measure_with_a_target() -> None:
    """Whichever mode of the stock saver was the best one in each run."""
    runs = [document(0.7, "stock pool", 1), document(0.05, "stock connection", 3), document(0.9, "stock pool", 2)]
    rows = [line for line in table(runs).splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| aput | 0.70 (1/20-0.90) of its time | ≤ 0.72 |",
        "| turn 400 | 0.70 (1/20-0.90) of the time of in memory | ≤ 0.90 |",
        "| setup: round trips | 2 (1-3) | ≤ 1.00 |",
        "| disk | 0.70 (1/20-0.90) of its size | ≤ 1/22 |",
    ]
