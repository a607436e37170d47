// Values and their differences as elements.

// What a value is, in few words.
function about(one) {
  const found = resolve(one);
  switch (kindOf(found)) {
    case "l": return `list of ${itemsOf(found).length.toLocaleString("en")}`;
    case "d": case "m": return counted(pairsOf(found).length, "key");
    case "c": return shown(shortName(found[1]));
    case "string": return counted(found.length, "character");
    case "t": return counted(found[1].length + found[2], "character");
    case "b": return "bytes";
    default: return "";
  }
}

const shortName = (name) => (FAMILIAR.test(name) ? name.slice(name.lastIndexOf(".") + 1) : name);

// A value without parts, or undefined.
function scalar(found) {
  switch (kindOf(found)) {
    case "undefined": return element("span", "odd", "a row of it is missing");
    case "string": return element("span", "string", "\"", shown(found), "\"");
    case "number": case "boolean": return element("span", "plain", shown(String(found)));
    case "object": return element("span", "plain", "null");
    case "n": return element("span", "plain", shown(found[1]));
    case "b": return element("span", "odd", `${size(found[1])} of bytes`, found[2] ? `: ${found[2]}${found[1] > 16 ? " …" : ""}` : "");
    case "s": return element("span", "odd", shown(`${found[1] || "unknown"}, ${size(found[2])}, ${found[3]}${found[4] ? `: ${found[4]}` : ""}`));
    case "x": return element("span", "odd", found[1] ? `${found[1].toLocaleString("en")} more, which are not in this file` : "nested too deeply");
    default: return undefined;
  }
}

const isEmpty = (found) => found === null || found === false || found === "" || (Array.isArray(found) && found.length === 1 && (found[0] === "l" || found[0] === "d"));

// A container's brackets, and its parts as [label, value].
function partsOf(found) {
  switch (kindOf(found)) {
    case "l": return { start: "[", end: "]", parts: itemsOf(found).map((item) => [null, item]) };
    case "c": {
      const parts = pairsOf(found).filter(([name, item]) => name === null || !isEmpty(resolve(item)));
      return { start: `${shortName(found[1])}(`, end: ")", parts, sign: "=" };
    }
    default: return { start: "{", end: "}", parts: pairsOf(found), sign: ": " };
  }
}

const keyText = (key) => (typeof key === "string" ? key : flatText(key, SHORT) ?? "(a long key)");

// A value on one line as text, or undefined if that would be longer.
function flatText(one, room) {
  const found = resolve(one);
  const kind = kindOf(found);
  if (kind === "string") return found.length + 2 <= room && !/[\n\r]/.test(found) ? `"${found}"` : undefined;
  const plain = scalar(found)?.textContent;
  if (plain !== undefined) return plain.length <= room ? plain : undefined;
  if (kind === "t" || found.length > room) return undefined;
  const { start, end, parts, sign } = partsOf(found);
  let text = start;
  for (const [key, item] of parts) {
    const label = key === null ? "" : `${keyText(key)}${sign}`;
    const part = flatText(item, room - text.length - label.length);
    if (part === undefined) return undefined;
    text += `${text === start ? "" : ", "}${label}${part}`;
  }
  return text.length + 1 <= room ? text + end : undefined;
}

function flatten(one, room) {
  const found = resolve(one);
  const text = flatText(found, room);
  if (text === undefined) return undefined;
  return scalar(found) ?? element("span", "flat", shown(text));
}

// A value as an element: on a line, as a block of text, or as a list of its parts that opens.
function value(one, depth) {
  const found = resolve(one);
  const flat = kindOf(found) === "c" && found[1].startsWith(MESSAGES) ? undefined : flatten(found, SHORT);
  if (flat) return flat;
  const kind = kindOf(found);
  if (kind === "string") return block(found, 0);
  if (kind === "t") return block(found[1], found[2]);
  const plain = scalar(found);
  if (plain) return plain;
  if (kind === "c" && found[1].startsWith(MESSAGES)) return message(found, depth);
  const { parts } = partsOf(found);
  const isOpen = depth < 2 || (depth < 5 && parts.length <= 8) || holds(one);
  const head = element("span", "kind", about(found));
  const list = element("div", "parts");
  const made = element("div", "value");
  const fill = () => list.replaceChildren(...(isShown ? items(parts, depth) : []));
  let isShown = isOpen;
  const toggle = button(head, "toggle", () => {
    isShown = !isShown;
    toggle.setAttribute("aria-expanded", isShown);
    fill();
  });
  toggle.setAttribute("aria-expanded", isShown);
  fill();
  made.append(toggle, list);
  return made;
}

const MESSAGES = "langchain_core.messages.";

// A message: who speaks, what is said, and what else there is.
function message(found, depth) {
  const parts = partsOf(found).parts.filter(([key]) => key !== "type");
  const take = (wanted) => {
    const at = parts.findIndex(([key, item]) => key === wanted && kindOf(resolve(item)) === "string");
    return at < 0 ? undefined : resolve(parts.splice(at, 1)[0][1]);
  };
  const [content, id] = [take("content"), take("id")];
  const head = element("div", "kind", shown(shortName(found[1])), id === undefined ? "" : element("span", "id", shown(id)));
  const rest = element("div", "", ...items(parts, depth));
  return element("div", "message", head, content === undefined ? "" : block(content, 0), rest);
}

// The parts of a container; of many the first and, since lists grow at their end, the last.
function items(parts, depth) {
  const made = (from, to) => parts.slice(from, to).map(([key, item], at) => part(key, item, from + at, depth));
  if (parts.length <= FEW) return made(0, parts.length);
  const [first, last] = [8, parts.length - 8];
  const rest = (from) => {
    const left = last - from;
    const more = button(`${left.toLocaleString("en")} more`, "more", () => {
      const to = Math.min(last, from + 200);
      more.replaceWith(...made(from, to), ...(to < last ? [rest(to)] : []));
    });
    return more;
  };
  return [...made(0, first), rest(first), ...made(last, parts.length)];
}

function part(key, item, number, depth) {
  const label = key === null ? element("span", "number", String(number)) : element("span", "key", shown(keyText(key)));
  return element("div", "part", label, value(item, depth + 1));
}

function block(text, leftOut) {
  const made = element("div", "text");
  const fill = (count) => {
    made.replaceChildren(shown(text.slice(0, count), true));
    if (count < text.length) made.append(button(`… all ${counted(text.length, "character")}`, "more", () => fill(text.length)));
    else if (leftOut) made.append(element("span", "odd", ` … ${counted(leftOut, "character")} more, which are not in this file`));
  };
  fill(text.length <= LONG * 1.2 ? text.length : LONG);
  return made;
}

function side(sign, ...content) {
  return element("div", sign === "+" ? "new" : "old", element("span", "sign", sign === "+" ? "+" : "−"), ...content);
}

// What differs between two values: of lists and maps the parts that do, of others both.
function difference(before, after, depth) {
  const [one, other] = [resolve(before), resolve(after)];
  const kinds = [kindOf(one), kindOf(other)];
  if (kinds[0] === kinds[1] && depth < 8) {
    if (kinds[0] === "l") return sequence(itemsOf(one), itemsOf(other), depth);
    if (kinds[0] === "d" || (kinds[0] === "c" && one[1] === other[1] && one[2] === other[2])) return members(one, other, depth);
    if (kinds[0] === "string" && /\n/.test(one) && /\n/.test(other)) return textLines(one, other);
  }
  const made = element("div", "difference");
  if (before !== undefined) made.append(side("-", value(one, depth + 1)));
  if (after !== undefined) made.append(side("+", value(other, depth + 1)));
  return made;
}

function sequence(one, other, depth) {
  const { start, end, removed, added } = between(one, other);
  const made = element("div", "difference");
  if (start) made.append(element("div", "kept", `${counted(start, "item")} as before`));
  if (removed.length === 1 && added.length === 1) made.append(element("div", "part", element("span", "number", String(start)), difference(removed[0], added[0], depth + 1)));
  else made.append(...few(removed, "-", start, depth), ...few(added, "+", start, depth));
  if (end) made.append(element("div", "kept", `${counted(end, "item")} as before`));
  return made;
}

function few(parts, sign, start, depth) {
  const made = (from, to) => parts.slice(from, to).map((item, at) => side(sign, element("span", "number", String(start + from + at)), value(item, depth + 1)));
  if (parts.length <= FEW) return made(0, parts.length);
  const more = button(`${(parts.length - FEW).toLocaleString("en")} more`, "more", () => more.replaceWith(...made(FEW, Math.min(parts.length, 500))));
  return [...made(0, FEW), more];
}

function members(one, other, depth) {
  const made = element("div", "difference");
  const before = new Map(pairsOf(one).map(([key, item], at) => [key ?? at, item]));
  const after = new Map(pairsOf(other).map(([key, item], at) => [key ?? at, item]));
  let kept = 0;
  for (const key of new Set([...before.keys(), ...after.keys()])) {
    const [old, now] = [before.get(key), after.get(key)];
    if (old !== undefined && now !== undefined && same(old, now)) kept += 1;
    else made.append(element("div", "part", element("span", "key", shown(keyText(key))), difference(old, now, depth + 1)));
  }
  if (kept) made.append(element("div", "kept", `${counted(kept, "member")} as before`));
  return made;
}

function textLines(one, other) {
  const { start, end, removed, added } = between(one.split("\n"), other.split("\n"));
  const made = element("div", "difference");
  if (start) made.append(element("div", "kept", `${counted(start, "line")} as before`));
  if (removed.length) made.append(side("-", block(removed.join("\n"), 0)));
  if (added.length) made.append(side("+", block(added.join("\n"), 0)));
  if (end) made.append(element("div", "kept", `${counted(end, "line")} as before`));
  return made;
}
