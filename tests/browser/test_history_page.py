"""A thread as a page, in a browser: what it shows, by mouse and by keyboard, and that nothing in it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from checkpoint_store import PostgresSaver
from tests.browser.conftest import PHONE, Open
from tests.browser.threads import HOSTILE, attack, correct_a_chat, marathon, take_notes, tangle, travel

# A browser beside the other workers of a test run may have little of the machine.
pytestmark = pytest.mark.timeout(900)

Write = Callable[..., Path]


@pytest.fixture
def trip(url: str, write: Write) -> Path:
    """The page of a trip with a question, a fork, subgraphs and a correction."""
    with PostgresSaver.from_conn_string(url) as saver:
        travel(saver)
    return write("trip-to-lisbon")


def selected(page: Page) -> int:
    """Return the row that is selected."""
    return int(page.locator(".row.selected").get_attribute("data-row") or -1)


def test_a_trip_is_a_tree_with_its_fork_and_its_subgraphs(show: Open, trip: Path) -> None:
    """The newest checkpoint is selected; what changed, what waits and the state are beside the tree."""
    page, heard = show(trip)
    expect(page).to_have_title("trip-to-lisbon")
    expect(page.locator("#facts")).to_contain_text("31 checkpoints · 5 namespaces")
    latest = page.locator(".row.selected")
    expect(latest).to_contain_text("latest")
    expect(latest).to_contain_text("interrupt")
    detail = page.locator("#detail")
    expect(detail.locator("h2")).to_contain_text("Step 11")
    expect(detail.get_by_text("1082")).to_be_visible()
    expect(detail.locator("h3", has_text="Writes")).to_contain_text("1 write of 1 task")
    page.keyboard.press("Home")
    expect(page.locator(".row.title")).to_have_count(4)
    assert heard == []


def test_keys_walk_along_the_tree_and_into_forks(show: Open, trip: Path) -> None:
    """Up and down by rows, to the right into subgraphs and forks, to the left back to where they begin."""
    page, heard = show(trip)
    page.keyboard.press("g")
    assert selected(page) == 0
    for key in ("j", "ArrowDown"):
        page.keyboard.press(key)
    assert selected(page) == 2
    page.keyboard.press("ArrowRight")
    assert selected(page) == 4, "the first checkpoint of the first subgraph, below its title"
    page.keyboard.press("l")
    assert selected(page) == 9, "the subgraph beside it"
    page.keyboard.press("h")
    assert selected(page) == 2
    page.keyboard.press("End")
    assert selected(page) == 34
    page.keyboard.press("k")
    assert selected(page) == 33
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.locator("#query")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#tree")).to_be_focused()
    assert heard == []


def test_search_finds_ids_nodes_and_values_where_they_came_in(show: Open, trip: Path) -> None:
    """A value is found with the checkpoints that brought it, not with each that still has it."""
    page, heard = show(trip)
    page.keyboard.press("/")
    page.keyboard.type("cais do sodre")
    expect(page.locator("#found")).to_have_text("5 checkpoints")
    page.keyboard.press("Enter")
    expect(page.locator("#detail mark").first).to_have_text(re.compile("cais do sodre", re.IGNORECASE))
    page.locator("#query").fill("nowhere to be found")
    expect(page.locator("#found")).to_have_text("nothing")
    page.locator("#query").fill("TOOL-HOTEL")
    expect(page.locator("#found")).to_have_text(re.compile("checkpoint"))
    first = page.locator("#detail .id").first.text_content() or ""
    page.locator("#query").fill(first[:20])
    expect(page.locator("#found")).to_have_text(re.compile("checkpoint"))
    page.keyboard.press("Escape")
    expect(page.locator("#found")).to_have_text("")
    assert heard == []


MARKED = """() => {
    const canvas = document.querySelector('#marks');
    const { data, width, height } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    return Array.from({ length: height }, (_, y) => y / height).filter((_, y) => data[4 * y * width + 3]);
}"""


def test_the_selection_is_marked_at_the_edge_only_of_a_tree_that_scrolls(show: Open, trip: Path) -> None:
    """As far down as the row is among all rows."""
    page, heard = show(trip)
    for key in ("Home", "ArrowDown", "End"):
        page.keyboard.press(key)
        wanted = (selected(page) + 0.5) / page.evaluate("rows.length")
        page.wait_for_function(
            f"wanted => {{ const at = ({MARKED})(); return Math.abs(at[0] - wanted) < 0.01; }}", arg=wanted
        )
    page.set_viewport_size({"width": 1280, "height": 1600})
    page.wait_for_function(f"!({MARKED})().length")
    page.locator("#query").fill("hotel")
    expect(page.locator("#found")).to_contain_text("checkpoint")
    assert page.evaluate(MARKED) == []
    assert [text for text in heard if "getImageData" not in text] == []  # which the test itself has used often


def test_channels_of_langgraphs_own_come_last(show: Open, trip: Path) -> None:
    """Below a title of their own, those without a value by their names only."""
    page, heard = show(trip)
    page.evaluate("select(rows.findIndex(one => thread.checkpoints[one.checkpoint]?.next.includes('search')))")
    expect(page.locator("#detail")).to_contain_text("__pregel_tasks")
    state = page.evaluate(
        """() => {
            const all = [...document.querySelector('#detail').children];
            const from = all.findIndex(one => one.localName === 'h3' && one.textContent.startsWith('State'));
            const to = all.findIndex((one, at) => at > from && one.localName === 'h3');
            return all.slice(from + 1, to).map(one => one.querySelector('.channel')?.textContent ?? one.textContent);
        }"""
    )
    title = next(at for at, text in enumerate(state) if text.startswith("LangGraph's own"))
    assert "messages" in state[:title]
    assert not [text for text in state[:title] if text.startswith(("__", "branch:to:"))]
    assert state[title + 1 :] == ["__pregel_tasks"]
    assert heard == []


def test_light_and_dark(show: Open, trip: Path) -> None:
    """The page follows the system, and the key or button changes it."""
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    dark, _ = show(trip, color_scheme="dark")
    light, heard = show(trip)
    assert dark.evaluate(colour) != light.evaluate(colour)
    light.locator("#theme").click()
    assert dark.evaluate(colour) == light.evaluate(colour)
    assert heard == []


def test_on_a_phone_the_tree_and_a_checkpoint_have_the_whole_width(show: Open, trip: Path) -> None:
    """A touch opens a checkpoint, and a button leads back; nothing is wider than the screen."""
    page, heard = show(trip, **PHONE)
    wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wider)
    page.locator(".row[data-row]").last.tap()
    expect(page.locator("#detail h2")).to_be_visible()
    assert not page.evaluate(wider)
    assert not page.evaluate("document.querySelector('#detail').scrollWidth > document.documentElement.clientWidth")
    page.get_by_role("button", name="Tree").tap()
    expect(page.locator("#detail h2")).to_be_hidden()
    assert heard == []


def test_ten_thousand_checkpoints_stay_fluid(show: Open, write: Write, url: str) -> None:
    """Only the rows in sight are elements; the list of messages is in the file once, not once for each version."""
    count = marathon(url, turns=1090)
    assert count >= 10_000
    file = write("marathon")
    assert file.stat().st_size < 15_000_000
    page, heard = show(file)
    expect(page.locator("#facts")).to_contain_text(f"{count:,} checkpoints")
    for key in ("Home", "PageDown", "End", "PageUp"):
        page.keyboard.press(key)
        assert page.locator("#rows > *").count() < 80
    page.keyboard.press("End")
    page.get_by_role("button", name="messages").click()
    expect(page.locator("#detail")).to_contain_text("Answer 1089")
    page.locator("#query").fill("answer 500:")
    expect(page.locator("#found")).to_have_text("1 checkpoint")
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_contain_text("500 items as before")
    assert heard == []


def test_a_hostile_thread_is_text(show: Open, write: Write, url: str) -> None:
    """Scripts, links, styles, prototypes and controls, in each place where a row has text, do nothing."""
    file = write(attack(url))
    page, heard = show(file)
    rows = page.evaluate("rows.length")
    for row in range(rows):
        page.evaluate("row => select(row)", row)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.evaluate("() => document.querySelectorAll('#detail .toggle').forEach(one => one.click())")
        page.evaluate("() => document.querySelectorAll('#detail .more').forEach(one => one.click())")
    for text in HOSTILE:
        page.evaluate("text => find(text)", text)
        assert page.locator("#found").text_content() != "nothing", text
    page.wait_for_timeout(200)
    found = page.evaluate(
        """() => ({
            canary: window.canary,
            polluted: ({}).polluted,
            elements: [...new Set([...document.querySelectorAll('*')].map(one => one.localName))].sort(),
            attributes: [...new Set([...document.querySelectorAll('body *')].flatMap(one => one.getAttributeNames()))],
            hidden: /[\\u202e\\u2066\\u0000\\u001b\\u2028\\ud800](?![\\udc00-\\udfff])/.test(document.body.innerText),
            title: document.title,
        })"""
    )
    assert found["canary"] is None
    assert found["polluted"] is None
    assert not {"img", "a", "iframe", "object", "embed", "link", "base", "form"} & set(found["elements"]), found
    assert not [name for name in found["attributes"] if name.startswith("on") or name in {"href", "src", "action"}]
    assert not found["hidden"]
    assert heard == []


def test_the_page_could_not_run_or_load_anything_if_it_tried(show: Open, trip: Path) -> None:
    """Its policy allows its one script and nothing else: no other script, no HTML made of text, no request."""
    page, _ = show(trip)
    tried = page.evaluate(
        """async () => {
            const script = document.createElement('script');
            const failed = async (work) => { try { await work(); return false; } catch { return true; } };
            const outcome = {
                html: await failed(() => { document.body.insertAdjacentHTML('beforeend', '<b>x</b>'); }),
                text: await failed(() => { script.textContent = 'window.canary = 1'; document.body.append(script); }),
                eval: await failed(() => eval('1')),
                fetch: await failed(() => fetch('data:text/plain,x')),
            };
            return { ...outcome, canary: window.canary };
        }"""
    )
    assert tried.pop("canary", None) is None
    assert tried["html"]
    assert tried["fetch"]


def test_a_delta_channel_is_put_together(show: Open, write: Write, url: str) -> None:
    """A checkpoint without its value has what was written since the last snapshot."""
    with PostgresSaver.from_conn_string(url) as saver:
        take_notes(saver)
    page, heard = show(write("notes"))
    page.keyboard.press("ArrowUp")
    expect(page.locator("#detail")).to_contain_text("6 items as before")
    expect(page.locator("#detail")).to_contain_text('"line 2"')
    expect(page.locator("#detail")).to_contain_text("put together of what was written")
    expect(page.locator("#detail")).to_contain_text('["a title", "line 7", "line 6"')
    assert heard == []


def test_messages_of_a_delta_channel_are_those_of_the_graph(show: Open, write: Write, url: str) -> None:
    """Replaced and removed ones too, at each checkpoint."""
    with PostgresSaver.from_conn_string(url) as saver:
        said = correct_a_chat(saver)
    page, heard = show(write("corrected"))
    content = 'message => resolve(member(message, "content"))'
    messages = f'index => itemsOf(resolve(stateOf(index).channels.get("messages") ?? ["l"])).map({content})'
    assert page.evaluate(f"[...thread.checkpoints.keys()].map({messages})") == said
    assert said[-1] == ["final", "answer", "bye"]
    assert heard == []


def test_each_checkpoint_is_drawn_once_whatever_the_parents_are(show: Open, write: Write, url: str) -> None:
    """Cycles are cut, hundreds of forks of one checkpoint stand one below the other."""
    count = tangle(url)
    page, heard = show(write("tangle"))
    drawn = page.evaluate("rows.filter(row => row.title === undefined).map(row => row.checkpoint)")
    assert sorted(drawn) == list(range(count))
    assert page.evaluate("rows.filter(row => row.title !== undefined).map(row => row.title)") == ["n:1", "n:1|k:2", "q"]
    for key in ("g", "l", "l", "h", "G", "h", "k", "PageUp"):
        page.keyboard.press(key)
    assert heard == []
