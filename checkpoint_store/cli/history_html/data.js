"use strict";
// The document: its records, values by their nodes, the state at a checkpoint. See nodes.py and document.py.

const thread = { checkpoints: [], writes: [] };
const nodes = [];
const values = [];

function load() {
  for (const element of document.querySelectorAll("script[type='application/json']")) {
    for (const record of JSON.parse(element.textContent)) {
      if (typeof record === "string" || Array.isArray(record)) nodes.push(record);
      else if ("checkpoint" in record) thread.checkpoints.push(record);
      else if ("value" in record) values[record.value] = record;
      else if ("write" in record) (thread.writes[record.write] ??= []).push(record);
      else Object.assign(thread, record);
    }
    element.remove();
  }
  // As LangGraph applies them: by the paths of their tasks, in which their rows are in order.
  for (const writes of thread.writes) writes?.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
}

// The value that a text of nodes.py stands for: a scalar or a tagged list. A stored value that is missing is undefined.
function resolve(value) {
  for (;;) {
    if (!Array.isArray(value)) return value;
    if (value[0] === "v") value = peeled(value);
    else if (typeof value[0] === "number") value = nodes[value[0]];
    else return value;
  }
}

function bytesOf(value) {
  return Array.isArray(value) && value[0] === "v" ? values[value[1]]?.bytes ?? 0 : 0;
}

const kindOf = (value) => (Array.isArray(value) ? (value[0] === "L" ? "l" : value[0]) : typeof value);

// The items of a list, of which the first may be those of another.
function itemsOf(list) {
  if (list[0] === "l") return list.slice(1);
  const parts = [];
  let wanted = Infinity;
  for (let at = list; ; at = nodes[at[1]]) {
    const based = at[0] === "L";
    const own = at.slice(based ? 3 : 1);
    const first = based ? at[2] : 0;
    if (wanted > first) parts.push(own.slice(0, wanted - first));
    wanted = Math.min(wanted, first);
    if (!based) break;
  }
  return parts.reverse().flat();
}

// The keys and values of a map or an object, keys as they are written; arguments without a name have null.
function pairsOf(value) {
  const pairs = [];
  const called = value[0] === "c";
  let at = 1;
  if (called) for (at = 3; at < 3 + value[2]; at += 1) pairs.push([null, value[at]]);
  for (; at < value.length; at += 2) {
    if (at + 1 === value.length) pairs.push([null, value[at]]);
    else pairs.push([resolve(value[at]), value[at + 1]]);
  }
  return pairs;
}

function same(one, other) {
  if (one === other) return true;
  if (!Array.isArray(one) || !Array.isArray(other)) return resolve(one) === resolve(other);
  if (one[0] === "v" || other[0] === "v") return same(peeled(one), peeled(other));
  return JSON.stringify(one) === JSON.stringify(other);
}

function peeled(value) {
  return Array.isArray(value) && value[0] === "v" ? values[value[1]]?.node ?? value[2] : value;
}

// The channels of a checkpoint that have a value, by name, those that were rebuilt, and those without a value.
function stateOf(index) {
  const found = new Map();
  const gone = new Set();
  for (let at = index; ; at = thread.checkpoints[at].parent) {
    const one = thread.checkpoints[at];
    for (const [name, value] of one.set) if (!found.has(name) && !gone.has(name)) found.set(name, value);
    for (const name of one.gone) if (!found.has(name)) gone.add(name);
    if (one.parent < 0 || one.parent >= at) break;
  }
  const absent = [];
  const rebuilt = new Set();
  for (const [name, value] of found) {
    found.set(name, unwrapped(value));
    if (peeled(value) !== undefined) continue;
    if (isDelta(name, index)) {
      found.set(name, deltaOf(name, index));
      rebuilt.add(name);
    } else {
      found.delete(name);
      absent.push(name);
    }
  }
  const sorted = [...found].sort((a, b) => (a[0] < b[0] ? -1 : 1));
  return { channels: new Map(sorted), rebuilt, absent: absent.sort() };
}

// The channels that differ from the parent's, as [name, before, after]; undefined where there is none.
function changesOf(index) {
  const { parent } = thread.checkpoints[index];
  const after = stateOf(index).channels;
  const before = parent < 0 ? new Map() : stateOf(parent).channels;
  const changed = [];
  for (const [name, value] of after) {
    if (!before.has(name) || !same(before.get(name), value)) changed.push([name, before.get(name), value]);
  }
  for (const [name, value] of before) if (!after.has(name)) changed.push([name, value, undefined]);
  return changed;
}

// What two lists share at their start and end, and what is between.
function between(one, other) {
  let start = 0;
  let end = 0;
  const most = Math.min(one.length, other.length);
  while (start < most && same(one[start], other[start])) start += 1;
  while (end < most - start && same(one[one.length - 1 - end], other[other.length - 1 - end])) end += 1;
  return { start, end, removed: one.slice(start, one.length - end), added: other.slice(start, other.length - end) };
}
