// The tree as rows: a checkpoint a row, forks and subgraphs to the right, the line to the newest checkpoint straight.

const LANES = 10; // deeper ones are drawn in the last lane

const rows = []; // {checkpoint, lane, join, below, passing, dashed} or {title, count, lane, ...}
const rowOf = []; // the row of each checkpoint

// The checkpoint that each one hangs on, by its parent or by the step that ran its graph; cycles are cut.
function attachments() {
  const count = thread.checkpoints.length;
  const up = new Int32Array(count);
  const children = Array.from({ length: count }, () => []);
  const inside = Array.from({ length: count }, () => []);
  const roots = [];
  thread.checkpoints.forEach((one, index) => {
    const isChild = one.parent >= 0 && one.parent !== index;
    up[index] = isChild ? one.parent : one.host >= 0 && one.host !== index ? one.host : -1;
    if (up[index] < 0) roots.push(index);
    else (isChild ? children : inside)[up[index]].push(index);
  });
  const order = [];
  const seen = new Uint8Array(count);
  const walk = (first) => {
    const waiting = [first];
    while (waiting.length) {
      const index = waiting.pop();
      if (seen[index]) continue;
      seen[index] = 1;
      order.push(index);
      for (const below of [children[index], inside[index]]) for (const one of below) waiting.push(one);
    }
  };
  roots.forEach(walk);
  for (let index = 0; index < count; index += 1) {
    if (seen[index]) continue;
    const siblings = (children[up[index]].includes(index) ? children : inside)[up[index]];
    siblings.splice(siblings.indexOf(index), 1);
    roots.push(index);
    walk(index);
  }
  return { order, children, inside, roots };
}

// The newest id below each checkpoint, in its own graph.
function newestBelow({ order, children }) {
  const newest = thread.checkpoints.map((one) => one.id);
  for (let at = order.length - 1; at >= 0; at -= 1) {
    for (const child of children[order[at]]) if (newest[child] > newest[order[at]]) newest[order[at]] = newest[child];
  }
  return newest;
}

const byId = (a, b) => (thread.checkpoints[a].id < thread.checkpoints[b].id ? -1 : 1);

// What is drawn below a checkpoint: graphs within its step, forks, and last the child on the straight line.
function partsBelow(index, { children, inside }, newest) {
  const graphs = new Map();
  for (const one of inside[index].sort(byId)) {
    const { ns } = thread.checkpoints[one];
    if (!graphs.has(ns)) graphs.set(ns, []);
    graphs.get(ns).push(one);
  }
  const below = children[index].sort(byId);
  let straight = -1;
  for (const child of below) if (straight < 0 || newest[child] >= newest[straight]) straight = child;
  return { graphs: [...graphs], forks: below.filter((child) => child !== straight), straight };
}

function plant() {
  const found = attachments();
  const newest = newestBelow(found);
  found.roots.sort((a, b) => (thread.checkpoints[a].ns < thread.checkpoints[b].ns ? -1 : thread.checkpoints[a].ns > thread.checkpoints[b].ns ? 1 : byId(a, b)));
  let last = "";
  for (const root of found.roots) {
    const { ns } = thread.checkpoints[root];
    if (ns !== last) rows.push({ title: ns, lane: 0, join: "root", below: true, passing: 0, dashed: 0 });
    last = ns;
    grow({ index: root, lane: 0, join: ns ? "line" : "root", passing: 0, dashed: ns ? 1 : 0 }, found, newest);
  }
}

function grow(first, found, newest) {
  const waiting = [first];
  while (waiting.length) {
    const { index, ...row } = waiting.pop();
    if (row.title !== undefined) {
      rows.push(row);
      continue;
    }
    const { graphs, forks, straight } = partsBelow(index, found, newest);
    rowOf[index] = rows.length;
    rows.push({ ...row, checkpoint: index, below: straight >= 0 || graphs.length + forks.length > 0 });
    const side = Math.min(row.lane + 1, LANES - 1);
    let left = graphs.length + forks.length + (straight >= 0 ? 1 : 0);
    const parts = [];
    const passing = () => row.passing | (left > 0 ? 1 << row.lane : 0);
    for (const [title, starts] of graphs) {
      left -= 1;
      const common = { lane: side, passing: passing(), dashed: row.dashed | (1 << side) };
      parts.push({ ...common, title, join: "fork", below: true });
      starts.forEach((one, place) => parts.push({ ...common, index: one, join: place ? "root" : "line" }));
    }
    for (const one of forks) {
      left -= 1;
      const dashed = row.dashed & ~(1 << side);
      parts.push({ lane: side, passing: passing(), dashed, index: one, join: "fork" });
    }
    if (straight >= 0) parts.push({ lane: row.lane, passing: row.passing, dashed: row.dashed, index: straight, join: "line" });
    for (const part of parts.reverse()) waiting.push(part);
  }
}

// The row where the line that a row is on begins, and the row that it begins at.
function startOfLine(row) {
  let at = row;
  while (at > 0 && rows[at].join === "line") {
    const { lane } = rows[at];
    do at -= 1; while (at > 0 && rows[at].lane > lane);
  }
  return at;
}

function origin(row) {
  let at = startOfLine(row);
  const { lane, join } = rows[at];
  if (join !== "fork") return at;
  do at -= 1; while (at > 0 && (rows[at].lane >= lane || rows[at].title !== undefined));
  return at;
}

// The next fork or subgraph to the right: of this checkpoint, beside the line that the row is on, or further down it.
function branch(row) {
  const { lane } = rows[row];
  const isSide = (at) => rows[at].join === "fork" && (rows[at].lane === lane || rows[at].lane === lane + 1);
  for (let at = row + 1; at < rows.length && rows[at].lane >= lane; at += 1) if (isSide(at)) return firstCheckpoint(at);
  return row;
}

function firstCheckpoint(row) {
  return rows[row].title !== undefined && row + 1 < rows.length ? row + 1 : row;
}
