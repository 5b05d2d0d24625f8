// What the page is made of: elements and words. What jobs bring along (types, payloads, errors, logs) becomes text nodes
// only: no text is ever read as HTML.

const SHOWN = 100_000; // characters of a payload or result that are shown
export const now = { skew: 0 }; // the server's clock against ours, ms
export const $ = (id) => document.getElementById(id);

export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(9).filter((child) => child != null && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

export const text = (value, kind = "") => el("span", { class: `data ${kind}` }, value);
export const count = (number) => number.toLocaleString("en");
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
export const time = () => Date.now() + now.skew;

export function span(ms) {
  const units = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"], [1, "ms"]];
  const [unit, name] = units.find(([unit]) => ms >= unit) ?? [1, "ms"];
  return `${Number((ms / unit).toPrecision(ms / unit < 100 ? 2 : 3))} ${name}`;
}

export function moment(at) {
  if (at == null) return "";
  const past = time() - at;
  const words = Math.abs(past) < 1000 ? "now" : past > 0 ? `${span(past)} ago` : `in ${span(-past)}`;
  return el("time", { datetime: new Date(at).toISOString(), title: clock(at) }, words);
}

export const clock = (at) => new Date(at).toLocaleString("sv", { timeZoneName: "short" });
export const both = (at) => (at == null ? null : [clock(at), " (", moment(at), ")"]);
export const pretty = (value) => JSON.stringify(value, null, 2);

export function block(value) {
  const whole = pretty(value);
  const pre = el("pre", null, whole.slice(0, SHOWN));
  const rest = whole.length - SHOWN;
  return rest > 0 ? [pre, el("p", { class: "soft" }, `${count(rest)} more characters; "raw" has them all.`)] : pre;
}

export function toast(words, bad = false) {
  const node = $("toast");
  node.textContent = words;
  node.className = bad ? "bad" : "";
  node.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (node.hidden = true), bad ? 8000 : 4000);
}

// Replace what a node holds only when it would differ: what is hovered, focused or selected stays.
export function put(node, key, make) {
  if (node.key === key) return;
  node.key = key;
  node.replaceChildren(...make().filter(Boolean));
}

export const fact = (name, ...value) => [el("dt", null, name), el("dd", { class: "data" }, ...value)];

export const notes = (lines) => el("ul", { class: "notes" }, lines.map(([kind, words]) => el("li", { class: `data ${kind}` }, words)));

export function svg(tag, attributes, children = []) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(Boolean));
  return node;
}

export const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
