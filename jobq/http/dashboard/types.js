// Draws how fast and how well each type runs, in the last hour, day or week, and which types are published.
import { $, count, el, patch, span } from "./parts.js";
import { api, of, page, tell } from "./state.js";

const WINDOWS = { "1h": "hour", "24h": "day", "7d": "week" };
const SHOWN = 50; // types that the table shows

export const readPerformance = (queue) => api(of(queue, `performance?window=${page.window}`));

function line({ type, completed, failed, retried, lost, wait, run }) {
  const time = (latency, name) => (latency ? span(latency[name]) : "-");
  const numbers = [completed, failed, retried, lost].map((number, place) => el("td", { class: `num ${place && number ? "bad" : ""}` }, count(number)));
  return el("tr", { key: type }, el("th", { scope: "row", class: "data name" }, type || "all"), numbers,
    [wait, run].flatMap((latency) => ["p50", "p99"].map((name) => el("td", { class: "num" }, time(latency, name)))));
}

// What programs without the code can enqueue, and what workers and servers of different releases disagree about.
function published(types) {
  const differing = types.filter((row) => row.differing.length);
  return [
    types.length > 0 && el("p", { class: "soft data" }, `Published by workers and servers: ${types.map((row) => row.type).join(", ")}`),
    differing.map((row) => el("p", { class: "bad data" },
      `${row.publisher} and ${row.differing.map((one) => one.publisher).join(", ")} publish different options or schemas of ${row.type}.`))];
}

export function drawTypes() {
  const found = page.performance, types = page.published ?? [];
  const node = $("types");
  node.hidden = !found?.types.length && page.window === "1h" && !types.length;
  if (node.hidden || !found) return;
  const choices = Object.entries(WINDOWS).map(([window, words]) =>
    el("button", { "aria-pressed": String(page.window === window), click: () => { page.window = window; tell("changed"); } }, `Last ${words}`));
  const heads = ["completed", "failed", "retried", "lost", "wait p50", "wait p99", "run p50", "run p99"];
  patch(node, el("h2", null, "Types"), el("div", { class: "buttons" }, choices),
    el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, el("th", { scope: "col" }, "type"), heads.map((head) => el("th", { scope: "col", class: "num" }, head)))),
      el("tbody", null, [found.all, ...found.types.slice(0, SHOWN)].map(line)))), published(types));
}
