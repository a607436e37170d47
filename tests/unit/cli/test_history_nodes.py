"""Values as JSON that names each distinct part once: nothing is lost, nothing is said twice, nothing ends a script."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store.cli.history_html.nodes import MAX_CHARACTERS, MAX_ITEMS, Nodes, Place
from checkpoint_store.cli.safe_decode import safe_decode

PLACE = Place(("", "messages"))


class Reader:
    """Reads the nodes as the page does."""

    def __init__(self, *, full: bool = False) -> None:
        self.texts: list[str] = []
        self.nodes = Nodes(self.texts.append, full=full)

    def read(self, text: str) -> Any:
        """Return the value that a text stands for, as plain data."""
        return self._plain(json.loads(text))

    def _items(self, tagged: list[Any]) -> list[Any]:
        if tagged[0] == "l":
            return tagged[1:]
        return [*self._items(json.loads(self.texts[tagged[1]]))[: tagged[2]], *tagged[3:]]

    def _plain(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        tag, *rest = value
        if isinstance(tag, int):
            return self._plain(json.loads(self.texts[tag]))
        if tag in ("l", "L"):
            return [self._plain(item) for item in self._items(value)]
        if tag in ("d", "m"):
            return {self._plain(key): self._plain(item) for key, item in zip(rest[::2], rest[1::2], strict=True)}
        if tag == "n":
            return float(rest[0]) if any(mark in rest[0] for mark in ".einf") else int(rest[0])
        return value


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=40,
)


@given(st.lists(st.lists(plain, max_size=40), max_size=6), st.randoms())
def test_every_version_of_a_list_is_read_as_it_was(versions: list[list[Any]], random: Any) -> None:
    """Grown, cut, or another one altogether: also where most of it is taken from the version before."""
    reader, grown = Reader(), []
    for version in versions:
        grown = [*grown[: random.randint(0, len(grown))], *version]
        stored = reader.nodes.stored(PLACE, "msgpack", msgpack.packb(grown))
        assert json.dumps(reader.read(stored), sort_keys=True) == json.dumps(grown, sort_keys=True)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_damaged_bytes_are_shown_as_safe_decode_shows_them(first: bytes, second: bytes) -> None:
    """Also after a version that was sound: what is taken from that does not hide what is wrong."""
    sound = msgpack.packb(list(range(20)))
    for blob in (first, b"\xdc\x00\x14" + first, sound, sound + second, sound[:9] + second):
        shared, alone = Reader(), Reader()
        shared.nodes.stored(PLACE, "msgpack", sound)
        text = shared.nodes.stored(PLACE, "msgpack", blob)
        expected = alone.nodes.value(safe_decode("msgpack", blob), PLACE)
        assert json.dumps(shared.read(text)) == json.dumps(alone.read(expected))


def test_a_chat_is_written_once_and_not_once_for_each_turn() -> None:
    """Ten times the turns are ten times the text, though the stored lists are a hundred times as large."""
    sizes = []
    for turns in (100, 1000):
        reader, chat = Reader(), []
        for turn in range(turns):
            chat.append({"content": f"message {turn}, " + "as long as a sentence " * 4})
            reader.nodes.stored(PLACE, "msgpack", msgpack.packb(chat))
        sizes.append(sum(map(len, reader.texts)))
    assert sizes[1] < 11 * sizes[0]


def test_a_fork_and_another_channel_share_parts() -> None:
    """An equal part is one node, wherever it is."""
    reader = Reader()
    file = {"content": "a long line " * 100}
    reader.nodes.stored(PLACE, "msgpack", msgpack.packb([file] * 3))
    before = len(reader.texts)
    reader.nodes.stored(Place(("", "files")), "msgpack", msgpack.packb({"a": file, "b": {"c": file}}))
    assert sum(map(len, reader.texts[before:])) < 100


@pytest.mark.parametrize("full", [False, True])
def test_long_values_are_cut_unless_all_is_wanted(full: bool) -> None:
    """A text and a list, each with a note of how much is not there."""
    reader = Reader(full=full)
    text = reader.nodes.value("x" * (MAX_CHARACTERS + 7), PLACE)
    many = reader.nodes.value([1] * (MAX_ITEMS + 7), PLACE)
    assert reader.read(text) == ("x" * (MAX_CHARACTERS + 7) if full else ["t", "x" * MAX_CHARACTERS, 7])
    assert reader.read(many)[-1] == (1 if full else ["x", 7])


@given(st.text())
def test_no_text_ends_the_element_it_stands_in(text: str) -> None:
    """Half characters included: it is ASCII without angle brackets and ampersands, and read as it was."""
    reader = Reader()
    value = {text: [text + "</script><!--&"] * 2}
    written = reader.nodes.value(value, PLACE)
    assert reader.read(written) == value
    for one in [written, *reader.texts]:
        assert one.isascii()
        assert not set("<>&\u2028") & set(one)
