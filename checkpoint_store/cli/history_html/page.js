// The page: selection, keys, search, theme.

const narrow = window.matchMedia("(max-width: 760px)");
let pending = 0;

function select(row, reveal = false) {
  if (row === undefined || row < 0 || row >= rows.length || rows[row].checkpoint === undefined) return;
  const before = drawn.get(selected);
  before?.classList.remove("selected");
  before?.removeAttribute("aria-selected");
  selected = row;
  keepInView(row, reveal);
  draw();
  const made = drawn.get(row);
  made.classList.add("selected");
  made.setAttribute("aria-selected", "true");
  $("tree").setAttribute("aria-activedescendant", made.id);
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    showDetail(rows[row].checkpoint);
    if (query) $("detail").querySelector("mark")?.scrollIntoView({ block: "center" });
    drawMarks();
  });
}

function keepInView(row, middle) {
  const tree = $("tree");
  const [top, bottom] = [row * height, (row + 1) * height];
  if (top >= tree.scrollTop && bottom <= tree.scrollTop + tree.clientHeight) return;
  if (middle) tree.scrollTop = top - tree.clientHeight / 2;
  else tree.scrollTop = top < tree.scrollTop ? top - height : bottom - tree.clientHeight + height;
}

// The nearest checkpoint at or after a row in a direction.
function nearest(row, direction) {
  let at = Math.min(Math.max(row, 0), rows.length - 1);
  while (at >= 0 && at < rows.length && rows[at].title !== undefined) at += direction;
  return at >= 0 && at < rows.length ? at : selected;
}

function openDetail() {
  document.body.classList.add("open");
  if (narrow.matches) $("detail").focus();
}

function closeDetail() {
  document.body.classList.remove("open");
  $("tree").focus();
}

function find(text) {
  const started = performance.now();
  query = text.trim().toLowerCase();
  holds = query ? holder(query) : () => false;
  hits = query ? search(query) : null;
  const count = hits ? hits.reduce((total, one) => total + one, 0) : 0;
  $("found").textContent = hits ? (count ? `${counted(count, "checkpoint")}` : "nothing") : "";
  $("before").disabled = $("after").disabled = !count;
  redraw();
  if (selected >= 0) showDetail(rows[selected].checkpoint);
  performance.measure("search", { start: started });
}

function step(direction) {
  if (!hits) return;
  for (let moved = 1; moved <= rows.length; moved += 1) {
    const at = (selected + direction * moved + rows.length * 2) % rows.length;
    if (rows[at].checkpoint !== undefined && hits[rows[at].checkpoint]) {
      select(at, true);
      return;
    }
  }
}

function changeTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  drawMarks();
}

const page = () => Math.max(1, Math.floor($("tree").clientHeight / height) - 1);

const MOVES = {
  ArrowDown: () => nearest(selected + 1, 1),
  ArrowUp: () => nearest(selected - 1, -1),
  ArrowRight: () => branch(selected),
  ArrowLeft: () => nearest(origin(selected), 1),
  PageDown: () => nearest(selected + page(), -1),
  PageUp: () => nearest(selected - page(), 1),
  Home: () => nearest(0, 1),
  End: () => nearest(rows.length - 1, -1),
};
const ALIASES = { j: "ArrowDown", k: "ArrowUp", l: "ArrowRight", h: "ArrowLeft", g: "Home", G: "End" };
const ACTIONS = {
  "/": () => $("query").select(),
  n: () => step(1),
  N: () => step(-1),
  t: changeTheme,
  "?": () => $("help").showModal(),
  Enter: openDetail,
  Escape: () => {
    if (document.body.classList.contains("open") && narrow.matches) closeDetail();
    else endSearch();
  },
};

function endSearch() {
  $("query").value = "";
  if (query) find("");
  $("tree").focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const inQuery = event.target === $("query");
  if (inQuery) {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") endSearch();
    else if (event.key === "ArrowDown") $("tree").focus();
    return;
  }
  const onButton = event.target instanceof HTMLButtonElement;
  const name = ALIASES[event.key] ?? event.key;
  const isScroll = $("detail").contains(event.target) && /^(Page|Home|End)/.test(name);
  if (Object.hasOwn(MOVES, name) && !isScroll) select(MOVES[name](), name === "ArrowLeft" || name === "ArrowRight");
  else if (Object.hasOwn(ACTIONS, event.key) && !(onButton && event.key === "Enter")) ACTIONS[event.key]();
  else return;
  event.preventDefault();
}

function describe() {
  document.title = thread.id;
  $("thread").replaceChildren(shown(thread.id));
  const times = thread.checkpoints.map((one) => one.time).filter((time) => time !== null);
  const [first, last] = [times.reduce((a, b) => Math.min(a, b), Infinity), times.reduce((a, b) => Math.max(a, b), -Infinity)];
  const graphs = new Set(thread.checkpoints.map((one) => one.ns)).size;
  const total = thread.checkpoints.reduce((sum, one) => sum + one.added, 0);
  const parts = [thread.total > thread.checkpoints.length ? `${thread.checkpoints.length.toLocaleString("en")} of ${counted(thread.total, "checkpoint")}` : counted(thread.total, "checkpoint"), counted(graphs, "namespace"), size(total)];
  if (times.length) parts.push(day(first) === day(last) ? `${day(first)}, ${clock(first).slice(0, 8)} to ${clock(last).slice(0, 8)} UTC` : `${day(first)} to ${day(last)}`);
  $("facts").textContent = parts.join(" · ");
}

function begin() {
  load();
  heaviest = thread.checkpoints.reduce((most, one) => Math.max(most, one.added), 0);
  let newest = -1;
  thread.checkpoints.forEach((one, index) => {
    if (!one.ns && (newest < 0 || one.id > thread.checkpoints[newest].id)) newest = index;
  });
  thread.parents = new Set(thread.checkpoints.map((one) => one.parent));
  thread.latest = thread.ends ? newest : -1;
  plant();
  digits = thread.checkpoints.reduce((most, one) => Math.min(6, Math.max(most, String(one.step).length)), 2);
  lanes = rows.reduce((most, row) => Math.max(most, row.lane + 1), 1);
  describe();
  measure();
  listen();
  const named = thread.checkpoints.findIndex((one) => location.hash.length > 1 && one.id.startsWith(location.hash.slice(1)));
  select(named >= 0 ? rowOf[named] : newest >= 0 ? rowOf[newest] : nearest(rows.length - 1, -1), true);
  $("tree").focus();
  performance.mark("ready");
}

function listen() {
  let frame = 0;
  let typed = 0;
  $("tree").addEventListener("scroll", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(draw);
  }, { passive: true });
  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".row[data-row]");
    if (!row) return;
    select(Number(row.dataset.row));
    openDetail();
  });
  $("query").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => find($("query").value), 120);
  });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  $("theme").addEventListener("click", changeTheme);
  $("keys").addEventListener("click", () => $("help").showModal());
  $("close").addEventListener("click", () => $("help").close());
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", measure);
}

begin();
