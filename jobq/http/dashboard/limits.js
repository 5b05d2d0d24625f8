// Draws the limits and the circuit breakers of a queue.
import { openKey, resetBreaker, resetRule, setConcurrency, tripBreaker } from "./actions.js";
import { $, count, el, moment, patch, span, text } from "./parts.js";
import { may, page, tell } from "./state.js";

const head = (...names) => el("thead", null, el("tr", null, names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name))));

function toggle(rule) {
  [page.rule, page.keys] = [page.rule === rule ? null : rule, []];
  tell("changed");
}

const OVER = { wait: "it waits", drop: "it is dropped", replace_oldest: "replaces the oldest", kill_running: "kills one that runs" };

const rates = (row) => row.rate.map((band) => `${count(band.count)} per ${span(band.per)}${band.burst > 1 ? `, ${count(band.burst)} at once` : ""}`);

function lineOf(row) {
  const numbers = [...(row.concurrency === null ? [] : [`${count(row.concurrency)} at once`]), ...rates(row)].join("; ");
  return el("tr", { key: row.rule },
    el("td", null, el("button", { click: () => toggle(row.rule), "aria-expanded": String(page.rule === row.rule) }, row.rule)),
    el("td", { class: "data" }, numbers || "no limit"),
    el("td", null, OVER[row.over]),
    el("td", null, row.orphan && row.source === "code" ? "code (orphan)" : row.source),
    el("td", { class: "num" }, count(row.held)),
    el("td", { class: "num" }, count(row.active)),
    el("td", { class: "tight" }, row.closed ? [`${count(row.closed)}, until `, moment(row.closed_until)] : null),
    el("td", null, may("admin") && el("span", { class: "buttons" },
      el("button", { click: () => setConcurrency(row) }, "Set"),
      (row.source === "operator" || row.orphan) && el("button", { click: () => resetRule(row) }, row.orphan ? "Remove" : "Reset"),
      row.rule === "queue" && row.closed > 0 && el("button", { click: () => openKey("queue") }, "Open"))));
}

function keysOf(row) {
  if (page.rule !== row.rule) return null;
  const lines = page.keys.map((key) => el("li", { key: key.key }, el("div", { class: "row" }, text(key.key),
    el("span", { class: "push" }, `${count(key.held)} held, ${count(key.active)} active`, key.closed_until ? [", closed until ", moment(key.closed_until)] : key.opens_at ? [", next start ", moment(key.opens_at)] : null),
    key.closed_until && may("admin") && el("button", { click: () => openKey(key.key) }, "Open"))));
  return el("tr", { key: `keys of ${row.rule}` }, el("td", { colspan: 8 }, lines.length ? el("ul", { class: "plain" }, lines) : el("span", { class: "soft" }, "No job counts under a key of this rule now.")));
}

function breaker(row) {
  const until = row.state === "open" ? [", until ", moment(row.open_until)] : row.state === "half-open" ? ", one job finds out" : null;
  return el("tr", { key: row.type },
    el("td", { class: "data type" }, row.type),
    el("td", { class: row.state === "closed" ? "good" : "bad" }, row.state, until),
    el("td", { class: "data" }, `at ${Math.round(row.rate * 100)}% of ${count(row.runs)} runs, for ${span(row.open_for)}`),
    el("td", { class: "num" }, `${count(row.failed)} of ${count(row.seen)}`),
    el("td", { class: "num" }, count(row.held)),
    el("td", null, may("admin") && el("span", { class: "buttons" },
      el("button", { click: () => tripBreaker(row.type) }, "Trip"),
      row.state !== "closed" && el("button", { click: () => resetBreaker(row.type) }, "Close"))));
}

export function drawLimits() {
  const { limits, breakers } = page;
  if (!$("limits")) return;
  $("limits").hidden = !limits.length && !breakers.length;
  const rules = [...limits].sort((a, b) => (a.rule < b.rule ? -1 : 1));
  patch($("limits"),
    limits.length > 0 && [el("h2", { key: "limits" }, "Limits"), el("div", { class: "scroll", key: "rules" }, el("table", null,
      head(["rule"], ["limit"], ["a job without room"], ["from"], ["held", "num"], ["active", "num"], ["closed keys"], [""]),
      el("tbody", null, rules.flatMap((row) => [lineOf(row), keysOf(row)]))))],
    breakers.length > 0 && [el("h2", { key: "breakers" }, "Circuit breakers"), el("div", { class: "scroll", key: "types" }, el("table", null,
      head(["type"], ["state"], ["opens"], ["failed", "num"], ["held", "num"], [""]),
      el("tbody", null, breakers.map(breaker))))]);
}
