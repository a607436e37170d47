"""What ran and what comes next, of checkpoints as LangGraph has written them since its first versions."""

from __future__ import annotations

import json
from typing import Any

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.types import Send

from checkpoint_store.cli.tasks import UNKNOWN, Versions, described, triggers_of
from checkpoint_store.serde.records import Summary


def versions(
    current: Any,
    seen: Any,
    values: dict[str, Any] | None = None,
    *,
    inline: tuple[str, ...] = (),
    finished: tuple[str, ...] = (),
    kind: str = "",
) -> Versions:
    stored = [JsonPlusSerializer().dumps_typed(value) for value in (values or {}).values()]
    columns = [*(values or {})], [kind or one for one, _ in stored], [blob for _, blob in stored]
    texts = json.dumps(current), json.dumps(seen)
    return Versions.of(Summary("", "1", None, "{}", 0, 0, None, None, finished, *texts, inline, *columns))


def test_a_node_is_due_if_its_channel_is_newer_and_has_a_value() -> None:
    """A channel that was consumed is newer too, but empty."""
    one = versions(
        {"branch:to:a": 3, "branch:to:b": 3, "branch:to:c": 2},
        {"a": {"branch:to:a": 2}, "b": {"branch:to:b": 2}, "c": {"branch:to:c": 2}},
        inline=("branch:to:a", "branch:to:c"),
    )

    assert one.due({}) == ["a"]


def test_versions_of_numbers_and_of_texts_are_compared() -> None:
    """LangGraph's in-memory saver counts, others add a fraction to a text; a tenth step comes after a ninth."""
    channel = {"inline": ("branch:to:a",)}
    for old, new in ((9, 10), (0.5, 1.5), ("0009.7", "0010.1")):
        assert versions({"branch:to:a": new}, {"a": {"branch:to:a": old}}, **channel).due({}) == ["a"]  # type: ignore[arg-type]
        assert versions({"branch:to:a": old}, {"a": {"branch:to:a": new}}, **channel).due({}) == []  # type: ignore[arg-type]


def test_one_that_waits_for_several_is_due_once_all_have_come() -> None:
    """Also if it is deferred, and a name has a plus sign in it."""
    channel = "join:a+b+c:x"
    for value, is_due in (
        ({"a"}, False),
        ({"a", "b+c"}, True),
        (({"a", "b+c"}, False), False),
        (({"a", "b+c"}, True), True),
    ):
        assert versions({channel: 2}, {}, {channel: value}).due({}) == (["x"] if is_due else []), value


def test_a_deferred_node_waits_for_the_end() -> None:
    """Its channel has a value before."""
    for is_last in (True, False):
        found = versions({"branch:to:x": 2}, {}, {"branch:to:x": (None, is_last)}).due({})
        assert found == (["x"] if is_last else [])


def test_sends_are_due_one_by_one() -> None:
    """Those that have finished are left out, by their places; before nodes that edges trigger."""
    sends = {"__pregel_tasks": [Send("work", 1), Send("rest", 2), Send("work", 3)]}
    done = ("~__pregel_push, 0000000000, 0000000000", "~__pregel_pull, a", "~__pregel_push, ~__pregel_pull, b")
    current = {"__pregel_tasks": 2, "branch:to:a": 2, "branch:to:b": 2}
    one = versions(current, {}, sends, inline=("branch:to:a", "branch:to:b"))

    assert one.due({}) == ["work", "rest", "work", "a", "b"]
    assert one.due({}, done) == ["rest", "work", "b"]
    assert described(one.due({})) == "work x2, rest, a, b"
    assert versions(current, {"a": {"branch:to:a": 2}}).ran_since(one) == ["work", "rest", "work", "a"]


def test_sends_that_can_not_be_read_are_told() -> None:
    """Encrypted ones, large ones, and what is none."""
    for kind, value in (("msgpack+aes", [1]), ("pickle", [1]), ("msgpack", [1])):
        assert versions({"__pregel_tasks": 2}, {}, {"__pregel_tasks": value}, kind=kind).due({}) == [UNKNOWN]


def test_other_graphs_show_what_triggers_what() -> None:
    """Pregel's own, and those of older versions of LangGraph, whose channels are named otherwise."""
    later = versions({"branch:a:route:b": 5}, {"b": {"branch:a:route:b": 5}, "c": {"b": 4}, "__interrupt__": {"x": 1}})
    one = versions({"branch:a:route:b": 3, "b": 2, "x": 9}, {}, {"b": 1, "x": 1}, inline=("branch:a:route:b",))

    assert one.due({}) == []
    assert one.due(triggers_of([later])) == ["b", "c"]


def test_the_first_node_is_the_start_or_the_workflow_that_has_begun() -> None:
    """A workflow of the functional API has a name of its own."""
    assert versions({"__start__": 1}, {"__input__": {}}, {"__start__": {}}).due({}) == ["__start__"]
    begun = versions({"__start__": 1}, {}, {"__start__": {}}, finished=("~__pregel_pull, flow",))
    assert begun.due({}) == ["flow"]


def test_a_snapshot_makes_no_node_one_that_ran() -> None:
    """It gives a channel a new version, and all that have seen the old one too; which it notes."""
    before = versions({"lines": 2}, {"a": {"lines": 2}, "b": {"lines": 1}})
    marks = {"a|lines": 3, "a:lines": 2}
    after = versions({"lines": 3}, {"a": {"lines": 3}, "b": {"lines": 3}, "__snapshot_bumps__": marks})

    assert after.ran_since(before) == ["b"]
    assert after.ran_since(None) == ["b"]
    assert after.ran_since(versions({}, {})) == ["a", "b"]
