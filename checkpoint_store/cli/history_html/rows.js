// The rows that can be seen, and no others.

const SVG = "http://www.w3.org/2000/svg";
const LANE = 16;
const EDGE = 20; // before the first lane
const SPARE = 12; // rows above and below

const drawn = new Map(); // row -> element
let height = 34;
let selected = -1; // a row
let hits = null; // a Uint8Array by checkpoint, while there is a search
let lanes = 1;
let heaviest = 0;
let digits = 2; // of a step

function measure() {
  height = parseFloat(getComputedStyle($("tree")).getPropertyValue("--row"));
  $("rows").style.height = `${rows.length * height}px`;
  $("rows").style.setProperty("--lanes", `${lanes * LANE + EDGE}px`);
  $("rows").style.setProperty("--steps", `${digits}ch`);
  redraw();
}

function redraw() {
  for (const made of drawn.values()) made.remove();
  drawn.clear();
  draw();
  drawMarks();
}

function draw() {
  const tree = $("tree");
  const first = Math.max(0, Math.floor(tree.scrollTop / height) - SPARE);
  const last = Math.min(rows.length, Math.ceil((tree.scrollTop + tree.clientHeight) / height) + SPARE);
  for (const [row, made] of drawn) {
    if (row < first || row >= last) {
      made.remove();
      drawn.delete(row);
    }
  }
  const fresh = document.createDocumentFragment();
  for (let row = first; row < last; row += 1) {
    if (drawn.has(row)) continue;
    const made = rows[row].title === undefined ? checkpointRow(row) : titleRow(row);
    made.style.transform = `translateY(${row * height}px)`;
    drawn.set(row, made);
    fresh.append(made);
  }
  $("rows").append(fresh);
}

function titleRow(row) {
  const { node, task } = graphName(rows[row].title);
  const made = element("div", "row title", lines(row), element("span", "name", element("b", "", shown(node)), " ", element("span", "task", shown(task))));
  made.setAttribute("role", "presentation");
  return made;
}

function checkpointRow(row) {
  const one = thread.checkpoints[rows[row].checkpoint];
  const made = element(
    "div", "row", lines(row),
    element("span", "step", shown(String(one.step ?? "?"))),
    element("span", "name", ...nameOf(one)),
    element("span", "flags", ...flagsOf(one, rows[row].checkpoint)),
    element("span", "added", bar(one.added, heaviest), element("span", "size", size(one.added))),
    element("span", "time", ...timeOf(row)),
  );
  made.id = `row-${row}`;
  made.setAttribute("role", "option");
  made.setAttribute("aria-posinset", row + 1);
  made.setAttribute("aria-setsize", rows.length);
  made.dataset.row = row;
  if (row === selected) {
    made.classList.add("selected");
    made.setAttribute("aria-selected", "true");
  }
  if (hits) made.classList.add(hits[rows[row].checkpoint] ? "hit" : "miss");
  return made;
}

// Nodes as text, each once; where LangGraph begins says nothing.
function described(names) {
  const counts = new Map();
  for (const name of names) if (name !== "__start__") counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => (count > 1 ? `${name} ×${count}` : name)).join(", ");
}

// What ran to make a checkpoint, or the source of one that no node made; and what comes next.
function nameOf(one) {
  const ran = described(one.ran);
  const next = described(one.next);
  const parts = [ran.length ? element("b", "", shown(ran)) : element("span", "source", shown(String(one.source ?? "?")))];
  if (next.length) parts.push(element("span", "next", " → ", shown(next)));
  return parts;
}

function flagsOf(one, index) {
  const flags = index === thread.latest ? [element("span", "flag latest", "latest")] : [];
  if (one.source === "fork" || (one.source === "update" && one.ran.length)) flags.push(element("span", "flag", shown(one.source)));
  if (one.parentId && one.parent < 0) flags.push(element("span", "flag", one.isStored ? "continued" : "parent not stored"));
  if (one.marks.includes("__interrupt__")) flags.push(element("span", "flag interrupt", "interrupt"));
  if (one.marks.includes("__error__")) flags.push(element("span", "flag error", "error"));
  if (one.tasks && !one.marks.length && thread.ends && !thread.parents.has(index)) flags.push(element("span", "flag", "waiting"));
  return flags;
}

function timeOf(row) {
  const one = thread.checkpoints[rows[row].checkpoint];
  if (one.time === null) return ["-"];
  const above = rows[row - 1]?.checkpoint ?? rows[row - 2]?.checkpoint;
  const earlier = above === undefined ? null : thread.checkpoints[above].time;
  const parts = [];
  if (earlier === null || day(earlier) !== day(one.time)) parts.push(element("span", "day", day(one.time), " "));
  parts.push(clock(one.time));
  const parent = thread.checkpoints[one.parent];
  const since = parent && parent.time !== null ? one.time - parent.time : null;
  parts.push(element("span", "since", since === null ? "" : since < 0 ? "earlier" : `+${lasted(since)}`));
  return parts;
}

// The lines to the left of a row: those that pass it, how its own comes in and goes on, and its dot.
function lines(row) {
  const { lane, join, below, passing, dashed } = rows[row];
  const image = document.createElementNS(SVG, "svg");
  image.setAttribute("class", "lines");
  image.setAttribute("width", lanes * LANE + EDGE);
  image.setAttribute("height", height);
  const middle = height / 2;
  const at = (number) => number * LANE + EDGE;
  const path = (shape, number) => {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("d", shape);
    if (dashed & (1 << number)) made.setAttribute("class", "dashed");
    image.append(made);
  };
  for (let number = 0; number < LANES; number += 1) {
    if (passing & (1 << number)) path(`M${at(number)} 0V${height}`, number);
  }
  const x = at(lane);
  if (join === "line") path(`M${x} 0V${middle}`, lane);
  if (join === "fork") path(`M${at(lane - 1)} 0C${at(lane - 1)} ${middle} ${at(lane - 1)} ${middle} ${x} ${middle}`, lane);
  if (below) path(`M${x} ${middle}V${height}`, rows[row + 1]?.join === "fork" ? rows[row].lane : lane);
  if (rows[row].title === undefined) image.append(dot(thread.checkpoints[rows[row].checkpoint], x, middle));
  return image;
}

function dot(one, x, y) {
  const made = document.createElementNS(SVG, "circle");
  made.setAttribute("cx", x);
  made.setAttribute("cy", y);
  made.setAttribute("r", 4);
  const kind = one.marks.includes("__error__") ? "error" : one.marks.includes("__interrupt__") ? "interrupt" : one.source === "input" ? "input" : "";
  made.setAttribute("class", `dot ${kind}`);
  return made;
}

// The strip beside a tree that scrolls: where matches are, and the row that is selected.
function drawMarks() {
  const canvas = $("marks");
  const scale = window.devicePixelRatio || 1;
  const [wide, tall] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = wide * scale;
  canvas.height = tall * scale;
  if ($("tree").scrollHeight <= $("tree").clientHeight) return;
  const pen = canvas.getContext("2d");
  const colors = getComputedStyle(canvas);
  const place = (row) => ((row + 0.5) / rows.length) * canvas.height - scale;
  if (hits) {
    pen.fillStyle = colors.getPropertyValue("color");
    rows.forEach((one, row) => {
      if (one.title === undefined && hits[one.checkpoint]) pen.fillRect(0, place(row), canvas.width, 2 * scale);
    });
  }
  if (selected >= 0) {
    pen.fillStyle = colors.getPropertyValue("outline-color");
    pen.fillRect(0, place(selected), canvas.width, 2 * scale);
  }
}
