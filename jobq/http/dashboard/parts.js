// Elements and text. All text from jobs (types, payloads, errors, logs) becomes text nodes, so it is never read as HTML.
// Invisible characters that move or hide others are shown as escapes.

const SHOWN = 100_000; // characters of a payload or result that are shown
export const now = { skew: 0 }; // The server's clock minus ours, in ms.
export const $ = (id) => document.getElementById(id);

// Control characters, marks of the writing direction, separators of lines, and characters without a width.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
export const visible = (words) => String(words).replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

// `key` identifies the node of the last drawing that this one replaces, see patch().
export function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  node.on = {};
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "key") node.key = value;
    else if (typeof value === "function") {
      node.on[name] = value;
      node.addEventListener(name, (event) => node.on[name]?.(event));
    } else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, visible(value));
  }
  node.append(...nodes(children));
  return node;
}

const nodes = (children) => children.flat(9).filter((child) => child != null && child !== false).map((child) => (child instanceof Node ? child : visible(child)));

// Give a node these children and change as little as possible. So focus, hover, open details and selection stay.
export function patch(node, ...children) {
  const fresh = nodes(children).map((child) => (child instanceof Node ? child : document.createTextNode(child)));
  const keyed = new Map([...node.childNodes].filter((child) => child.key !== undefined).map((child) => [child.key, child]));
  let at = node.firstChild;
  for (const next of fresh) {
    const old = next.key === undefined ? at : keyed.get(next.key);
    if (!old || !alike(old, next)) {
      node.insertBefore(next, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else node.insertBefore(old, at);
    adopt(old, next);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const alike = (old, next) => old.nodeType === next.nodeType && old.nodeName === next.nodeName && old.key === next.key;

function adopt(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  old.on = next.on;
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value && name !== "open") old.setAttribute(name, value);
  patch(old, ...next.childNodes);
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
  node.textContent = visible(words);
  node.className = bad ? "bad" : "";
  node.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (node.hidden = true), bad ? 8000 : 4000);
}

export const fact = (name, ...value) => [el("dt", null, name), el("dd", { class: "data" }, ...value)];

export const notes = (lines) => el("ul", { class: "notes" }, lines.map(([kind, words]) => el("li", { class: `data ${kind}` }, words)));

export function svg(tag, attributes, children = []) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, visible(value));
  node.append(...children.filter(Boolean));
  return node;
}

export const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);
