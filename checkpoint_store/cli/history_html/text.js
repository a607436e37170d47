// Text from the database as text: no element, attribute or address is made of it, and what is invisible is spelled out.

const $ = (id) => document.getElementById(id);

// Controls, marks that turn or hide text, and half characters; line ends and tabs too where there is one line.
const HIDDEN = /[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
const HIDDEN_IN_LINES = new RegExp(`(?![\\n\\t])${HIDDEN.source}`, "gu");

let query = ""; // in lower case; what is found is marked

function element(name, className = "", ...content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...content.filter((part) => part !== null && part !== undefined));
  return made;
}

function button(label, className, action) {
  const made = element("button", className, label);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

// Nodes for a text, with what is hidden spelled out and what is searched for marked.
function shown(text, lines = false) {
  const made = document.createDocumentFragment();
  for (const [part, isMatch] of matches(text)) {
    const target = isMatch ? element("mark") : made;
    let last = 0;
    for (const found of part.matchAll(lines ? HIDDEN_IN_LINES : HIDDEN)) {
      target.append(part.slice(last, found.index), element("span", "hidden", spelled(found[0])));
      last = found.index + found[0].length;
    }
    target.append(part.slice(last));
    if (isMatch) made.append(target);
  }
  return made;
}

function spelled(character) {
  const code = character.codePointAt(0);
  if (code < 0x100) return { 9: "\\t", 10: "\\n", 13: "\\r" }[code] ?? `\\x${code.toString(16).padStart(2, "0")}`;
  return code > 0xffff ? `\\U${code.toString(16).padStart(8, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

function* matches(text) {
  const lower = text.toLowerCase();
  let last = 0;
  if (query && lower.length === text.length) {
    for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, last)) {
      if (at > last) yield [text.slice(last, at), false];
      last = at + query.length;
      yield [text.slice(at, last), true];
    }
  }
  if (last < text.length) yield [text.slice(last), false];
}

const UNITS = ["B", "kB", "MB", "GB", "TB"];

function size(count) {
  let amount = count;
  let unit = 0;
  while (amount >= 999.95 && unit < UNITS.length - 1) {
    amount /= 1000;
    unit += 1;
  }
  return unit ? `${amount.toFixed(1)} ${UNITS[unit]}` : `${count} B`;
}

function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;
}

const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", timeZone: "UTC" });

const day = (time) => DAY.format(time);
const clock = (time) => new Date(time).toISOString().slice(11, 23);

function lasted(milliseconds) {
  const seconds = milliseconds / 1000;
  if (seconds < 1) return `${Math.round(milliseconds)} ms`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

function bar(amount, most) {
  const filled = element("i");
  filled.style.width = `${most > 0 && amount > 0 ? Math.max(2, 100 * Math.sqrt(amount / most)) : 0}%`;
  return element("span", "bar", filled);
}

// The name of a subgraph's node and the start of its task's id.
function graphName(ns) {
  const last = ns.slice(ns.lastIndexOf("|") + 1);
  const colon = last.indexOf(":");
  return colon < 0 ? { node: last, task: "" } : { node: last.slice(0, colon), task: last.slice(colon + 1, colon + 9) };
}
