"""Large values <-> pages and recipes: they come back, they share, and an earlier cut only saves time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpoint_store.serde import pages
from checkpoint_store.serde.pages import DIGEST_BYTES, ENTRY_BYTES, PAGE_BYTES, Cut, cut, digests, join

LETTERS = random.Random(0)
WORDS = ["".join(LETTERS.choices("eeeaaoöinnrsstdlumcé'.4", k=2 + rank % 9)) for rank in range(2000)]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.text(max_size=8), inner, max_size=8)
        | st.builds(lambda value: msgpack.ExtType(7, msgpack.packb(value)), inner)
    ),
    max_leaves=20,
)

# Elements of all sizes from seeds, since Hypothesis makes no values that are large.
kinds = st.sampled_from(["text", "bytes", "object", "snapshot", "list", "map", "numbers", "broken"])
sizes = st.sampled_from([1, 30, 70, 300, 1000, 2500, 5000, 9000, 20_000, 70_000])
elements = st.deferred(lambda: st.builds(element, kinds, sizes, st.integers(0, 5)))
# A busy machine takes its time over a megabyte.
large = settings(deadline=None, max_examples=50)
lists_of_elements = st.lists(elements, min_size=1, max_size=20)


def packed(elements: list[bytes]) -> bytes:
    """Msgpack of a list, from msgpack of its elements."""
    return msgpack.Packer().pack_array_header(len(elements)) + b"".join(elements)


@cache
def element(kind: str, size: int, seed: int) -> bytes:
    """Msgpack of about as many bytes; the same for the same seed."""
    chance = random.Random(f"{kind} {size} {seed}")
    if kind == "text":
        return msgpack.packb(prose(chance, size))
    if kind == "bytes":
        return msgpack.packb(chance.randbytes(size))
    if kind == "numbers":
        return msgpack.packb([chance.random() for _ in range(size // 9)])
    parts = [prose(chance, chance.choice([10, 100, 900])) for _ in range(1 + size // 300)]
    inner = msgpack.packb(dict(enumerate(parts)) if kind == "map" else parts)
    if kind in {"list", "map"}:
        return inner
    # Truncated inside of an Ext, which msgpack itself does not look into.
    inner = inner[: len(inner) * 2 // 3] if kind == "broken" else inner
    return msgpack.packb(msgpack.ExtType(5 if kind == "object" else 7, inner))


def prose(chance: random.Random, size: int) -> str:
    return " ".join(chance.choices(WORDS, k=size // 6 + 1))


def message(chance: random.Random, words: int) -> bytes:
    """What LangGraph makes of a chat message, more or less."""
    head = ["langchain_core.messages.human", "HumanMessage"]
    fields = {
        "content": " ".join(chance.choices(WORDS, k=words)),
        "type": "human",
        "id": f"{chance.getrandbits(128):x}",
    }
    return msgpack.packb(msgpack.ExtType(5, msgpack.packb([*head, fields, "model_validate_json"])))


def chat(turns: int, seed: int = 0) -> list[bytes]:
    """A question of 30 words and an answer of 120 at every turn."""
    chance = random.Random(seed)
    return [message(chance, words) for _ in range(turns) for words in (30, 120)]


@dataclass
class Notes:
    count: int
    messages: list[AnyMessage]


def new_pages(after: Cut, before: Cut) -> list[bytes]:
    return [page for digest, page in after.pages.items() if digest not in before.pages]


@given(values)
def test_a_value_comes_back(value: Any) -> None:
    """What msgpack can hold is the same after it was cut and joined."""
    whole = msgpack.packb(value)
    assert join(*cut(whole)[:2]) == whole


@large
@given(lists_of_elements)
def test_a_large_value_comes_back(parts: list[bytes]) -> None:
    """So is a list whose elements have up to 70 kB, are nested, or hide what is not msgpack."""
    recipe, named, _ = cut(packed(parts))
    assert join(recipe, named) == packed(parts)
    assert digests(recipe) == [digest for digest in digests(recipe) if digest in named]
    assert list(named) == list(dict.fromkeys(digests(recipe)))
    assert all(blake2b(page, digest_size=DIGEST_BYTES).digest() == digest for digest, page in named.items())


@given(st.binary(), st.integers(1, 2000), st.binary(max_size=9))
def test_any_bytes_come_back(some: bytes, times: int, more: bytes) -> None:
    """A value need not be msgpack, nor end where its msgpack ends."""
    value = some * times + more
    assert join(*cut(value)[:2]) == value


@large
@given(lists_of_elements, st.data())
def test_damaged_msgpack_comes_back(parts: list[bytes], data: st.DataObject) -> None:
    """A value that was cut off, or of which a byte has changed, comes back as it is, with an earlier cut as without."""
    value = bytearray(packed(parts))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] = data.draw(st.integers(0, 255))
    damaged = bytes(value[: data.draw(st.integers(0, len(value)))])
    without = cut(damaged)
    assert join(*without[:2]) == damaged
    assert cut(damaged, cut(packed(parts))) == without
    assert cut(packed(parts), without) == cut(packed(parts))


@large
@given(lists_of_elements, lists_of_elements, st.data())
def test_an_earlier_cut_makes_no_difference(old: list[bytes], fresh: list[bytes], data: st.DataObject) -> None:
    """Whatever was cut before, edited how often and nested how deep: recipe, pages and stretches are as without."""
    wrappings: list[Callable[[bytes], bytes]] = [
        lambda value: value,
        lambda value: packed([value]),
        lambda value: packed([packed([b"\x01", value]), b"\x02"]),
        lambda value: msgpack.packb(msgpack.ExtType(7, value)),
        lambda value: msgpack.packb(msgpack.ExtType(0, packed([value]))),
        lambda value: value + b"trailing",
    ]
    wrapping = st.sampled_from(wrappings)
    before = None
    parts = old
    for _ in range(3):
        value = data.draw(wrapping)(packed(parts))
        after = cut(value, before)
        assert after == cut(value)
        before = after if data.draw(st.booleans()) else cut(data.draw(wrapping)(packed(fresh)), after)
        first, last = sorted(data.draw(st.tuples(st.integers(0, len(parts)), st.integers(0, len(parts)))))
        put = data.draw(st.sampled_from([[], fresh[:1], fresh, parts[first:last][::-1], parts[:first]]))
        parts = [*parts[:first], *put, *parts[last:]]


@large
@given(lists_of_elements, st.integers(0, 80), st.integers(0, 110))
@example([msgpack.packb("a" * 1000)] * 100, 50, 50)
def test_an_earlier_cut_makes_no_difference_to_false_headers(parts: list[bytes], count: int, percent: int) -> None:
    """Bytes that were cut before are cut anew where a header says that fewer of them belong together."""
    content = b"".join(parts)
    header = msgpack.Packer().pack_array_header
    fewer = header(count) + content
    shorter = header(1) + b"\xc9" + (len(content) * percent // 100).to_bytes(4, "big") + b"\x07" + packed(parts)
    for false in (fewer, shorter):
        for before in (cut(packed(parts)), cut(packed([msgpack.packb(msgpack.ExtType(7, packed(parts)))]))):
            assert cut(false, before) == cut(false)


def test_a_cut_from_elsewhere_will_do() -> None:
    """A Cut that was put together from a stored recipe and its pages is as good as none."""
    recipe, named, _ = cut(packed(chat(30)))
    assert cut(packed(chat(31)), Cut(recipe, named)) == cut(packed(chat(31)))


def replace(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(parts))
    return [*parts[:place], message(chance, 60), *parts[place + 1 :]]


def insert(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(parts))
    return [*parts[:place], message(chance, 60), *parts[place:]]


def delete(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    place = chance.randrange(len(parts))
    return parts[:place] + parts[place + chance.randrange(1, 9) :]


def append(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    return [*parts, message(chance, 30), message(chance, 120)]


def trim(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    return parts[chance.randrange(1, 9) :]


def swap(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    one, two, three, four = sorted(chance.sample(range(len(parts)), 4))
    return parts[:one] + parts[three:four] + parts[two:three] + parts[one:two] + parts[four:]


@pytest.mark.parametrize(
    ("edit", "places"),
    [(append, 1), (trim, 1), (replace, 1), (insert, 1), (delete, 1), (swap, 4)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_an_edit_makes_few_new_pages(edit: Callable[[random.Random, list[bytes]], list[bytes]], places: int) -> None:
    """Two or three pages for each place where something has changed, and seldom more; all else is there already."""
    made = []
    for seed in range(25):
        chance = random.Random(seed)
        parts = chat(100, seed)
        before = cut(packed(parts))
        after = cut(packed(edit(chance, parts)), before)
        made.append(sum(map(len, new_pages(after, before))))
    assert sum(made) / len(made) < places * 3 * PAGE_BYTES
    assert max(made) < places * 10 * PAGE_BYTES


@pytest.mark.parametrize("size", [20, 100, 700, 1000, 2000, 2100, 3000, 4000, 7000, 9000])
def test_elements_of_one_size_share_once_the_first_is_gone(size: int) -> None:
    """Pages are not so many elements each: then all of them would be others."""
    made = []
    for seed in range(8):
        chance = random.Random(seed)
        parts = [msgpack.packb(chance.randbytes(size)) for _ in range(400_000 // size)]
        before = cut(packed(parts))
        made.append(sum(map(len, new_pages(cut(packed(parts[1:])), before))))
    assert sum(made) / len(made) < 6 * PAGE_BYTES


def test_a_chat_of_400_turns_takes_a_fiftieth() -> None:
    """What every append leaves behind, pages and recipes, is a fiftieth of what whole values would be."""
    parts = chat(400)
    stored: dict[bytes, bytes] = {}
    recipes = whole = 0
    before = None
    for count in range(1, len(parts) + 1):
        value = packed(parts[:count])
        before = cut(value, before)
        stored.update(before.pages)
        recipes += len(before.recipe)
        whole += len(value)
    assert (sum(map(len, stored.values())) + recipes) * 50 < whole


@pytest.mark.parametrize(
    ("wrap", "turns"),
    [
        (lambda messages: messages, 100),
        (lambda messages: {"messages": messages, "count": len(messages)}, 100),
        (lambda messages: {"notes": "n" * 300, "deeper": {"messages": messages}, "count": len(messages)}, 100),
        (lambda messages: (len(messages), {"messages": messages}), 100),
        (lambda messages: Notes(len(messages), messages), 100),
        (lambda messages: _DeltaSnapshot({"messages": messages}), 100),
        (_DeltaSnapshot, 15),
    ],
    ids=["list", "dict", "dict in dict", "dict in tuple", "object", "snapshot of a dict", "small snapshot"],
)
def test_a_nested_list_shares(
    wrap: Callable[[list[AnyMessage]], Any], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages appended to a list inside of something make new pages only at its end, and nothing before is hashed."""
    chance = random.Random(0)
    messages: list[AnyMessage] = []
    for turn in range(turns):
        messages += [HumanMessage(prose(chance, 200), id=f"h{turn}"), AIMessage(prose(chance, 900), id=f"a{turn}")]
    serializer = JsonPlusSerializer()
    old, value = (serializer.dumps_typed(wrap(some))[1] for some in (messages[:-2], messages))
    before, without = cut(old), cut(value)
    hashed = hashing(monkeypatch)
    after = cut(value, before)
    assert after == without
    assert 1 <= len(new_pages(after, before)) <= 2
    assert set(digests(after.recipe)[:-3]) <= set(before.pages)
    assert sum(map(len, hashed)) <= 3 * PAGE_BYTES


def hashing(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every page hashed from here on."""
    hashed: list[bytes] = []

    def record(page: bytes, *, digest_size: int) -> Any:
        hashed.append(page)
        return blake2b(page, digest_size=digest_size)

    monkeypatch.setattr(pages, "blake2b", record)
    return hashed


@pytest.mark.parametrize(
    ("edit", "turns"),
    [(append, 300), (trim, 300), (replace, 300), (insert, 300), (delete, 300), (append, 30), (replace, 30)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_unchanged_is_not_hashed_again(
    edit: Callable[[random.Random, list[bytes]], list[bytes]], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an earlier cut at hand, only pages near the edit are, and what comes after the last whole page."""
    hashed = hashing(monkeypatch)
    for seed in range(10):
        chance = random.Random(seed)
        parts = chat(turns, seed)
        before = cut(packed(parts))
        value = packed(edit(chance, parts))
        hashed.clear()
        after = cut(value, before)
        assert after.pages.keys() - before.pages.keys() <= {blake2b(page, digest_size=16).digest() for page in hashed}
        new = sum(map(len, new_pages(after, before)))
        assert sum(map(len, hashed)) <= new + 4 * PAGE_BYTES


def test_numbers_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding is cut like a string, and still shares when a number is put in."""
    monkeypatch.setattr(pages, "crc32", None)
    chance = random.Random(0)
    numbers = [chance.random() for _ in range(20_000)]
    before = cut(msgpack.packb(numbers))
    after = cut(msgpack.packb([*numbers[:50], 0.5, *numbers[50:]]))
    assert len(before.pages) > 20
    assert sum(map(len, new_pages(after, before))) < 10 * PAGE_BYTES


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_long_string_shares(kind: str) -> None:
    """What is added to its end or put into its middle changes only the pages there."""
    chance = random.Random(0)
    long: Any = prose(chance, 300_000) if kind == "text" else chance.randbytes(300_000)
    middle = long[:1000] + long[:7] + long[1000:]
    before = cut(msgpack.packb(long))
    assert len(before.pages) > 40
    assert sum(map(len, new_pages(cut(msgpack.packb(long + long[:100])), before))) < 4 * PAGE_BYTES
    assert sum(map(len, new_pages(cut(msgpack.packb(middle)), before))) < 10 * PAGE_BYTES


def test_a_large_element_has_pages_of_its_own() -> None:
    """An image between messages keeps its pages, and they theirs, when it moves."""
    image = msgpack.packb(random.Random(0).randbytes(200_000))
    parts = chat(50)
    before = cut(packed([*parts[:40], image, *parts[40:]]))
    after = cut(packed([*parts[:60], image, *parts[60:]]))
    assert sum(map(len, new_pages(after, before))) < 6 * PAGE_BYTES


@pytest.mark.parametrize("depth", [7, 8, 9, 300, 2000, 100_000])
def test_deep_nesting_comes_back(depth: int) -> None:
    """However deep a value is nested, and whichever way."""
    for opening in (b"\x91", b"\x81\x01", b"\xc9\xff\xff\xff\xff\x07", b"\x92" + msgpack.packb("x" * 90)):
        for inner in (b"\xc0", packed(chat(20))):
            value = opening * depth + inner
            assert join(*cut(value)[:2]) == value
            assert cut(value, cut(value[:-1])) == cut(value)


@pytest.mark.parametrize("empty", [[], {}, "", b"", [[]], msgpack.ExtType(7, b"\x90"), [None] * 20], ids=repr)
def test_a_small_value_makes_no_page(empty: Any) -> None:
    """A few bytes are stated in the recipe itself."""
    whole = msgpack.packb(empty)
    assert cut(whole).pages == {}
    assert join(cut(whole).recipe, {}) == whole


def test_nothing_is_an_empty_recipe() -> None:
    """Not even a value of no bytes is an exception."""
    assert cut(b"") == Cut(b"", {})
    assert join(b"", {}) == b""


@large
@given(lists_of_elements)
def test_no_page_is_tiny_or_huge(parts: list[bytes]) -> None:
    """A row for a few bytes would be a waste, and a page of more than 32 kB is too much to write again."""
    sizes = list(map(len, cut(packed(parts)).pages.values()))
    assert all(64 < size < 4 * PAGE_BYTES for size in sizes)


def test_a_growing_list_sends_what_it_has_grown_by() -> None:
    """Each step of a chat sends its new message once, and once more when a page is full: not all since the last one."""
    parts = chat(400, 1)
    before, sent = cut(packed(parts[:300])), 0
    for turn in range(301, 401):
        after = cut(packed(parts[:turn]), before)
        sent += sum(map(len, new_pages(after, before)))
        before = after
    assert sent < 2.5 * sum(map(len, parts[300:400]))


@pytest.mark.parametrize("kind", ["text", "bytes", "object", "list", "map"])
@pytest.mark.parametrize("size", [20, 300, 1000, 3000, 30_000])
def test_pages_have_about_8_kb_on_average(kind: str, size: int) -> None:
    """Whatever the elements are, their pages come to the size that recipes and rewritten pages were weighed for."""
    parts = [element(kind, size, seed) for seed in range(800_000 // size)]
    named = cut(packed(parts)).pages.values()
    assert PAGE_BYTES / 2 < sum(map(len, named)) / len(named) < PAGE_BYTES * 2


def test_a_recipe_names_a_page_as_often_as_it_is_used() -> None:
    """Equal pages are one page."""
    recipe, named, _ = cut(bytes(400_000))
    assert len(digests(recipe)) > 10
    assert len(named) <= 2


def test_a_missing_page_is_named() -> None:
    """Joining without one of the pages says which."""
    recipe, named, _ = cut(packed(chat(20)))
    missing, _ = named.popitem()
    with pytest.raises(KeyError, match=missing.hex()):
        join(recipe, named)


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        (b"\x01a", "2 bytes is cut off"),
        (bytes(ENTRY_BYTES) + b"\xff", "18 bytes is cut off"),
        (
            bytes(ENTRY_BYTES) + b"\x11" + bytes(DIGEST_BYTES),
            "entry 1 of a recipe must begin with 0 to 16, or 255, not 17",
        ),
        (b"\xfe" + bytes(DIGEST_BYTES), "entry 0 of a recipe must begin with 0 to 16, or 255, not 254"),
    ],
)
def test_what_is_no_recipe_is_refused(recipe: bytes, complaint: str) -> None:
    """The message says what came."""
    with pytest.raises(ValueError, match=complaint):
        join(recipe, {})
    with pytest.raises(ValueError, match=complaint):
        digests(recipe)


def test_the_format_is_as_the_database_reads_it() -> None:
    """A header inline and padded, then the elements' page by its digest: the database joins them by itself."""
    parts = [msgpack.packb("x" * 100)] * 3
    content = b"".join(parts)
    digest = blake2b(content, digest_size=16).digest()
    assert cut(packed(parts))[:2] == (b"\x01\x93" + bytes(15) + b"\xff" + digest, {digest: content})
