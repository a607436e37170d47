"""LANGGRAPH_STRICT_MSGPACK: what somebody has put into a row is not executed when it is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ormsgpack
import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import PostgresSaver

READER = """
import json, sys
from pathlib import Path
from typing import Any
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import START, StateGraph
from typing import TypedDict
from checkpoint_store import PostgresSaver

class State(TypedDict):
    items: Any

url, victim = sys.argv[1], Path(sys.argv[2])
thread = {"configurable": {"thread_id": "t1", "checkpoint_ns": ""}}
secret = EncryptedSerializer.from_pycryptodome_aes(key=b"0" * 16)
builder = StateGraph(State).add_node("node", lambda state: state).add_edge(START, "node")
outcomes = {}

def note(name, read):
    try:
        value = read()
    except Exception as error:
        value = type(error).__name__
    outcomes[name] = [value, victim.exists()]
    victim.unlink(missing_ok=True)

with PostgresSaver.from_conn_string(url) as saver:
    note("get", lambda: saver.get(thread)["channel_values"]["items"])
    note("list", lambda: next(saver.list(thread)).pending_writes[0][2])
    note("history", lambda: saver.get_delta_channel_history(config=thread, channels=["items"])["items"]["seed"])
    note("graph", lambda: builder.compile(checkpointer=saver).get_state(thread).values["items"])
with PostgresSaver.from_conn_string(url, serde=secret) as saver:
    note("encrypting", lambda: saver.get(thread)["channel_values"]["items"])
with PostgresSaver.from_conn_string(url, serde=secret, require_encryption=True) as saver:
    note("requiring", lambda: saver.get(thread)["channel_values"]["items"])
print(json.dumps(outcomes))
"""


@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_a_payload_is_executed_only_where_langgraph_is_lenient(
    url: str, sync_saver: PostgresSaver, tmp_path: Path, strict: bool
) -> None:
    """In a process of its own, since LangGraph reads the setting once: with it, the call comes back as its argument.

    A serializer that encrypts still reads what is in clear, unless encryption is required.
    """
    victim = tmp_path / "executed"
    code = f"open({str(victim)!r}, 'w').write('x') and 'ran'"
    payload = ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(("builtins", "eval", code))))
    config: dict[str, dict[str, str]] = {"configurable": {"thread_id": "t1", "checkpoint_ns": ""}}
    for identity in (f"{number:032}" for number in range(2)):
        checkpoint = {**empty_checkpoint(), "v": 4, "id": identity, "channel_values": {"items": ["x"]}}
        checkpoint["channel_versions"] = {"items": "1"}
        config = sync_saver.put(config, checkpoint, {}, {"items": "1"})  # type: ignore[arg-type, assignment]
        sync_saver.put_writes(config, [("items", "x")], "task")  # type: ignore[arg-type]
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE checkpoint_blobs SET blob = %s", [payload])
        conn.execute("UPDATE checkpoint_writes SET blob = %s", [payload])

    ended = subprocess.run(
        [sys.executable, "-c", READER, url, str(victim)],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": str(strict).lower()},
        check=True,
        capture_output=True,
        text=True,
    )

    answer = [code, False] if strict else ["ran", True]
    expected = dict.fromkeys(["get", "list", "history", "graph", "encrypting"], answer)
    assert json.loads(ended.stdout) == {**expected, "requiring": ["NotEncrypted", False]}
    assert ("Blocked deserialization of builtins.eval" in ended.stderr) == strict
