"use strict";
// Delta channels, of which most checkpoints have only what their step added: put together as `show` does it, by the
// rules of delta_channels.py.

// The value of a snapshot of a delta channel, and any other as it is.
function unwrapped(value) {
  const found = resolve(value);
  return kindOf(found) === "c" && found[1] === "langgraph._DeltaSnapshot" ? found[3] : value;
}

// Whether a channel is a delta channel, of which a checkpoint without a value has what was written since the last one.
function isDelta(name, index) {
  const metadata = resolve(thread.checkpoints[index].metadata);
  const counters = pairsOf(metadata).find(([key]) => key === "counters_since_delta_snapshot");
  const found = counters && resolve(counters[1]);
  return kindOf(found) === "d" && pairsOf(found).some(([key]) => key === name);
}

const writesTo = (name, index) => (thread.writes[index] ?? []).filter((write) => write.channel === name).map((write) => write.node);

// The value of a delta channel at a checkpoint: its last snapshot, and what was written since.
function deltaOf(name, index) {
  let [at, snapshot, written] = [index, undefined, []];
  while (snapshot === undefined && thread.checkpoints[at].parent >= 0 && thread.checkpoints[at].parent < at) {
    at = thread.checkpoints[at].parent;
    written = [...writesTo(name, at), ...written];
    snapshot = thread.checkpoints[at].set.find(([channel, one]) => channel === name && resolve(one) !== undefined)?.[1];
  }
  return combined(unwrapped(snapshot), written);
}

function combined(base, writes) {
  for (let place = writes.length - 1; place >= 0; place -= 1) {
    const found = overwriteOf(writes[place]);
    if (found === undefined) continue;
    base = resolve(found) === null ? undefined : found;
    writes = writes.slice(place + 1);
    break;
  }
  if (!writes.length) return base === undefined ? ["l"] : base;
  const parts = base === undefined ? writes : [base, ...writes];
  if (parts.every(areFiles)) return joined(parts);
  const isEmpty = base === undefined || resolve(base) === null;
  const areLists = (isEmpty || isList(base)) && writes.every((write) => isList(write) || isMessage(write));
  if (!areLists) return ["d", ...(base === undefined ? [] : ["snapshot", base]), "writes since", ["l", ...writes]];
  const state = isEmpty ? [] : itemsOf(resolve(base));
  const items = writes.flatMap((write) => (isList(write) ? itemsOf(resolve(write)) : [write]));
  return ["l", ...([...state, ...items].some(isMessage) ? merged(state, items) : [...state, ...items])];
}

// Messages with others added: one with a known id replaces it, a removal deletes it.
function merged(state, messages) {
  const all = messages.findLastIndex((message) => isRemoval(message) && idOf(message) === "__remove_all__");
  const found = all < 0 ? [...state] : [];
  const places = new Map();
  found.forEach((message, place) => places.set(idOf(message), place));
  for (const message of messages.slice(all + 1)) {
    const id = idOf(message);
    const place = id === undefined ? undefined : places.get(id);
    if (id !== undefined && isRemoval(message)) {
      if (place !== undefined) found[place] = undefined;
      places.delete(id);
    } else if (place !== undefined) {
      found[place] = message;
    } else {
      places.set(id, found.push(message) - 1);
    }
  }
  return found.filter((message) => message !== undefined);
}

// The files of deepagents, by their names: null deletes one.
function areFiles(part) {
  const found = resolve(part);
  const isFile = ([, file]) => resolve(file) === null || (isMap(file) && ["content", "modified_at"].every((key) => member(file, key) !== undefined));
  return kindOf(found) === "d" && pairsOf(found).every(isFile);
}

function joined(parts) {
  const files = new Map();
  for (const [name, file] of parts.flatMap((part) => pairsOf(resolve(part)))) {
    if (resolve(file) === null) files.delete(name);
    else files.set(name, file);
  }
  return ["d", ...[...files].flat()];
}

// What a write replaces the value by, if it is one that does: LangGraph has three forms of it.
function overwriteOf(write) {
  const found = resolve(write);
  if (kindOf(found) === "c" && found[1] === "langgraph.types.Overwrite") return member(write, "value") ?? (found[2] ? found[3] : null);
  if (kindOf(found) !== "d") return undefined;
  if (resolve(member(write, "type")) === "__overwrite__") return member(write, "value");
  return pairsOf(found).length === 1 ? member(write, "__overwrite__") : undefined;
}

const KINDS = new Set(["user", "human", "assistant", "ai", "tool", "system", "function", "remove"]);

const isList = (value) => kindOf(resolve(value)) === "l";
const isMap = (value) => kindOf(resolve(value)) === "d";
const isCall = (value) => kindOf(resolve(value)) === "c";
const isRemoval = (value) => isCall(value) && resolve(value)[1].startsWith(MESSAGES) && resolve(value)[1].endsWith(".RemoveMessage");

// The value of a map under a key, or of a call's argument of a name.
function member(value, key) {
  return pairsOf(resolve(value)).find(([name]) => name === key)?.[1];
}

function isMessage(value) {
  if (isCall(value)) return resolve(value)[1].startsWith(MESSAGES);
  return isMap(value) && ["role", "type"].some((key) => KINDS.has(resolve(member(value, key))));
}

function idOf(message) {
  const id = isCall(message) || isMap(message) ? resolve(member(message, "id")) : undefined;
  return typeof id === "string" ? id : undefined;
}

