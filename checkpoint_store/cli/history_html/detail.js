// The checkpoint that is selected: its place, what changed, what was written, its state; values as trees of text.

const SHORT = 72; // characters of a value that is shown on one line
const LONG = 1500; // characters of a string before the rest has to be asked for
const FEW = 24; // items before the rest has to be asked for
const FAMILIAR = /^(langchain_core|langgraph|builtins)\./;

const open = new Set(); // the channels that were opened, from checkpoint to checkpoint

function showDetail(index) {
  const one = thread.checkpoints[index];
  const detail = $("detail");
  const state = stateOf(index);
  detail.replaceChildren(
    heading(one, index),
    ...changed(index),
    ...written(index),
    ...stateSection(state),
    ...section("Metadata", "", value(one.metadata, 0)),
  );
  detail.scrollTop = 0;
}

function heading(one, index) {
  const facts = element("dl", "facts");
  const fact = (name, ...content) => facts.append(element("dt", "", name), element("dd", "", ...content));
  const jump = (at) => button(shown(thread.checkpoints[at].id), "jump id", () => select(rowOf[at], true));
  fact("Ran", shown(described(one.ran) || "-"));
  fact("Next", shown(described(one.next) || "-"));
  fact("Time", one.time === null ? "-" : `${day(one.time)}, ${clock(one.time)} UTC`);
  fact("Added", size(one.added));
  fact("Id", element("span", "id", shown(one.id)));
  if (one.parent >= 0) fact("Parent", jump(one.parent));
  else if (one.parentId) fact("Parent", element("span", "id", shown(one.parentId)), one.isStored ? " (not in this page)" : " (not stored)");
  if (one.ns) fact("Namespace", element("span", "id", shown(one.ns)));
  if (one.ns && one.host >= 0) fact("Within", jump(one.host));
  const title = element("h2", "", "Step ", shown(String(one.step ?? "?")), " ", element("span", "source", shown(String(one.source ?? ""))));
  const back = button("‹ Tree", "back", closeDetail);
  return element("header", "", back, element("div", "titles", title, ...flagsOf(one, index)), facts);
}

function section(title, note, ...content) {
  return [element("h3", "", title, " ", element("span", "note", note)), ...content];
}

function changed(index) {
  const one = thread.checkpoints[index];
  const changes = changesOf(index);
  const note = one.parent < 0 ? "no parent here to compare with: everything is new" : `${counted(changes.length, "channel")} against the parent`;
  const entries = changes.filter(([name]) => !isOwn(name)).map(([name, before, after]) => {
    const made = element("div", "change", element("h4", "", shown(name)));
    made.append(before === undefined && one.parent < 0 ? value(after, 0) : difference(before, after, 0));
    return made;
  });
  const own = changes.filter(([name]) => isOwn(name)).map(([name, before, after]) => [name, before === undefined ? "+" : after === undefined ? "−" : "±"]);
  return section("Changed", note, ...entries, ...(own.length ? [ownChannels(own)] : []));
}

// Channels that LangGraph keeps for itself say little, and come last.
const isOwn = (name) => /^(branch:to:|join:|__)/.test(name);

function ownChannels(named) {
  const made = element("div", "own", element("span", "", "LangGraph's own"));
  made.append(element("span", "", ...named.flatMap(([name, sign], at) => [at ? ", " : "", sign ? `${sign} ` : "", shown(name)])));
  return made;
}

function written(index) {
  const writes = thread.writes[index] ?? [];
  if (!writes.length) return [];
  const tasks = new Map();
  for (const write of writes) {
    if (!tasks.has(write.task)) tasks.set(write.task, []);
    tasks.get(write.task).push(write);
  }
  const parts = [];
  const largest = writes.reduce((most, write) => Math.max(most, write.bytes), 0);
  for (const [task, its] of tasks) {
    const node = /^~__pregel_pull, ([^]*)$/.exec(its[0].path)?.[1];
    parts.push(() => element("h4", "", node === undefined ? "task" : shown(node), " ", element("span", "id", shown(task))));
    const own = its.filter((write) => write.channel.startsWith("branch:to:"));
    for (const write of its) if (!own.includes(write)) parts.push(() => entry(`write ${write.channel}`, write.channel, write.node, write.bytes, largest));
    if (own.length) parts.push(() => ownChannels(own.map((write) => [write.channel, ""])));
  }
  return section("Writes", `${counted(writes.length, "write")} of ${counted(tasks.size, "task")} after this checkpoint`, ...some(parts));
}

// The first of many elements, made as they are asked for.
function some(makers, from = 0) {
  const to = Math.min(makers.length, from + 200);
  const made = makers.slice(from, to).map((make) => make());
  if (to === makers.length) return made;
  const more = button(`${(makers.length - to).toLocaleString("en")} more`, "more", () => more.replaceWith(...some(makers, to)));
  return [...made, more];
}

function stateSection({ channels, rebuilt, absent }) {
  const largest = [...channels.values()].reduce((most, one) => Math.max(most, bytesOf(one)), 0);
  const made = ([name, one]) => () => entry(name, name, one, bytesOf(one), largest, rebuilt.has(name) ? "put together of what was written" : "");
  const its = [...channels].filter(([name]) => !isOwn(name));
  const own = [...channels].filter(([name]) => isOwn(name));
  const telling = own.filter(([, one]) => resolve(one) !== null);
  const names = [...own.filter((one) => !telling.includes(one)).map(([name]) => name), ...absent.filter(isOwn)].map((name) => [name, ""]);
  const notes = absent.filter((name) => !isOwn(name)).map((name) => element("p", "absent", element("span", "channel", shown(name)), " ", "no value here"));
  const last = own.length || names.length ? [ownChannels(names), ...some(telling.map(made))] : [];
  return section("State", counted(channels.size, "channel"), ...some(its.map(made)), ...notes, ...last);
}

// A channel with its size, and its value if it is short or has been opened.
function entry(key, name, one, bytes, largest, note = "") {
  const made = element("div", "entry");
  const flat = flatten(one, SHORT);
  const found = holds(one); // what is searched for is shown
  const sizes = bytes ? element("span", "added", bar(bytes, largest), element("span", "size", size(bytes))) : null;
  if (flat) {
    made.classList.add("short");
    const about = note ? element("span", "about", " ", note) : null;
    made.append(element("span", "channel", shown(name)), element("span", "", flat, about), sizes ?? "");
    return made;
  }
  const content = element("div", "content");
  const isOpen = () => open.has(key) !== found;
  const head = element("div", "head", element("span", "channel", shown(name)), element("span", "about", about(one), note && ", ", note), sizes);
  const toggle = button(head, "toggle", () => {
    if (open.has(key)) open.delete(key);
    else open.add(key);
    update();
  });
  const update = () => {
    toggle.setAttribute("aria-expanded", isOpen());
    content.replaceChildren(...(isOpen() ? [value(one, 0)] : []));
  };
  update();
  made.append(toggle, content);
  return made;
}
