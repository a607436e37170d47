// Search: the checkpoints with which a text came, in an id, a name, or a value.

let texts = null; // of each node, its own strings in lower case
let uses = null; // of each node, the nodes that it names
let holds = () => false; // whether a value has what is searched for

function collect(value, strings, numbers) {
  if (typeof value === "string") strings.push(value);
  else if (typeof value === "number" || typeof value === "boolean") strings.push(String(value));
  else if (Array.isArray(value)) {
    if (typeof value[0] === "number") numbers.push(value[0]);
    else for (let at = value[0] === "L" ? 3 : 1; at < value.length; at += 1) collect(value[at], strings, numbers);
  }
}

function gather(value) {
  const strings = [];
  const numbers = [];
  collect(value, strings, numbers);
  return [strings.join("\n").toLowerCase(), numbers];
}

function prepare() {
  if (texts) return;
  const gathered = nodes.map(gather);
  texts = gathered.map(([text]) => text);
  uses = gathered.map(([, numbers]) => numbers);
  for (const one of thread.checkpoints) {
    const names = [one.id, one.ns, one.source, one.parentId ?? "", ...one.ran, ...one.next, ...one.marks, ...one.set.map(([name]) => name)];
    one.text = names.join("\n").toLowerCase();
  }
}

// The function that tells whether a value has a text.
function holder(wanted) {
  prepare();
  const has = new Uint8Array(nodes.length);
  for (let at = 0; at < has.length; at += 1) {
    // A node comes after those that it names.
    if (texts[at].includes(wanted) || uses[at].some((number) => has[number])) has[at] = 1;
  }
  return (value) => {
    const found = peeled(value);
    if (found === undefined) return false;
    if (Array.isArray(found) && typeof found[0] === "number") return has[found[0]] === 1;
    const [text, numbers] = gather(found);
    return text.includes(wanted) || numbers.some((number) => has[number]);
  };
}

// By checkpoint, whether a text came with it.
function search(wanted) {
  return Uint8Array.from(thread.checkpoints, (one, index) => {
    if (one.text.includes(wanted) || holds(one.metadata)) return 1;
    if ((thread.writes[index] ?? []).some((write) => `${write.task}\n${write.channel}`.toLowerCase().includes(wanted) || holds(write.node))) return 1;
    return one.set.some(([name, value]) => holds(value) && isNew(valueBefore(index, name), value)) ? 1 : 0;
  });
}

function valueBefore(index, name) {
  for (let at = index; ; ) {
    const { parent } = thread.checkpoints[at];
    if (parent < 0 || parent >= at) return undefined;
    at = parent;
    const found = thread.checkpoints[at].set.find(([channel]) => channel === name);
    if (found) return found[1];
    if (thread.checkpoints[at].gone.includes(name)) return undefined;
  }
}

// Whether what is found in a value was not in the same place before.
function isNew(before, after) {
  const [one, other] = [resolve(before), resolve(after)];
  if (one === other) return false;
  const kind = kindOf(other);
  if (one === undefined || kindOf(one) !== kind) return true;
  if (kind === "l") {
    if (other[0] === "L" && nodes[other[1]] === one) return true; // only its own items were looked at
    return between(itemsOf(one), itemsOf(other)).added.some(holds);
  }
  if (kind !== "d" && kind !== "c") return true;
  const known = new Map(pairsOf(one));
  return pairsOf(other).some(([key, item]) => holds(item) && !(known.has(key) && same(known.get(key), item)));
}
