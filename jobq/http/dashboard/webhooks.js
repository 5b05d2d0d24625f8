// Draws the webhooks of a queue, with their last deliveries and the buttons of admins.
import { ask } from "./actions.js";
import { $, count, el, moment, patch, toast } from "./parts.js";
import { api, hrefOf, may, of, page, Refused, tell } from "./state.js";

const SHOWN = 50; // deliveries of a state among which the last one of each webhook is searched
const opened = new Map(); // queue -> the webhook whose last deliveries are shown
const delivering = (queue) => `${queue}.webhooks`;

export async function readWebhooks(queue) {
  if (!may("admin")) return [];
  const { webhooks } = await api(of(queue, "webhooks"));
  if (!webhooks.length) return [];
  const last = await readLast(queue);
  const open = webhooks.find(({ name }) => name === opened.get(queue));
  const deliveries = open && (await api(of(queue, `webhooks/${encodeURIComponent(open.name)}/deliveries`))).deliveries;
  return webhooks.map((row) => ({ ...row, last: last.get(row.name), deliveries: row === open ? deliveries : null }));
}

// The last attempt of each webhook. The id of a delivery begins with the name of its webhook.
async function readLast(queue) {
  const last = new Map();
  try {
    const pages = await Promise.all(["completed", "failed", "delayed"].map((state) => api(of(delivering(queue), `jobs?state=${state}&limit=${SHOWN}`))));
    for (const job of pages.flatMap(({ jobs }) => jobs)) {
      const at = job.finished_at ?? job.started_at ?? job.enqueued_at;
      const name = job.id.split(":").at(-1).split("~")[0];
      if (job.attempts_made && !(last.get(name)?.at > at)) last.set(name, { at, job });
    }
  } catch (error) {
    // The server has not begun to deliver, or the key does not reach that queue.
    if (!(error instanceof Refused)) throw error;
  }
  return last;
}

export function drawWebhooks() {
  const { webhooks, route } = page;
  const node = $("webhooks");
  node.hidden = !webhooks?.length;
  if (node.hidden) return;
  const names = [["webhook"], ["state"], ["events"], ["address"], ["last attempt"], ["failures in a row", "num"], ["waiting", "num"], [""]];
  patch(node, el("h2", null, "Webhooks"),
    el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
      el("tbody", null, webhooks.map((row) => line(route.queue, row))))),
    lastDeliveries(webhooks),
    el("p", null, el("a", { href: hrefOf(delivering(route.queue), "failed") }, "Failed deliveries")));
}

// The last deliveries of the webhook whose button was pressed.
function lastDeliveries(webhooks) {
  const row = webhooks.find(({ deliveries }) => deliveries);
  if (!row) return null;
  const names = [["delivery"], ["event"], ["job"], ["answer"], ["attempts", "num"], ["last attempt"]];
  return el("div", { class: "scroll" }, el("h3", null, `Last deliveries of ${row.name}`), el("table", null,
    el("thead", null, el("tr", null, names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
    el("tbody", null, row.deliveries.map((one) => el("tr", { key: one.id },
      el("td", { class: "data" }, el("a", { href: `#/job/${encodeURIComponent(one.id)}` }, one.id.split(":").at(-1))),
      el("td", null, one.event),
      el("td", { class: "data" }, one.job ?? ""),
      el("td", { class: one.state === "completed" ? "good" : "bad" }, one.status ? String(one.status) : one.error ?? one.state),
      el("td", { class: "num" }, count(one.attempts_made)),
      el("td", null, moment(one.at)))))));
}

function line(queue, row) {
  const told = row.types ? `${row.events.join(", ")} of ${row.types.join(", ")}` : row.events.join(", ");
  return el("tr", { key: row.name },
    el("td", { class: "data type" }, row.name),
    el("td", { class: row.enabled ? "good" : "bad" }, row.enabled ? "on" : row.disabled ? `off: ${row.disabled}` : "off"),
    el("td", { class: "data" }, told),
    el("td", { class: "data wide" }, row.url),
    el("td", null, row.last ? attempt(row.last) : el("span", { class: "soft" }, "none")),
    el("td", { class: "num" }, count(row.failures)),
    el("td", { class: "num" }, count(row.waiting)),
    el("td", null, el("span", { class: "buttons" },
      el("button", { "aria-label": `Deliveries ${row.name}`, "aria-expanded": String(!!row.deliveries), click: () => open(queue, row) }, "Deliveries"),
      button(queue, row, "Test", "An event webhook.test is delivered now.", (path) => api(`${path}/test`, { method: "POST" }), "It is being delivered."),
      row.enabled
        ? button(queue, row, "Disable", "It is told of nothing until it is enabled. Deliveries that wait fail.", set(row, false), "The webhook is disabled.")
        : button(queue, row, "Enable", "It is told of events from now on.", set(row, true), "The webhook is enabled."))));
}

const attempt = ({ at, job }) => [el("a", { href: `#/job/${encodeURIComponent(job.id)}`, class: job.state === "completed" ? "good" : "bad" },
  job.state === "completed" ? "delivered" : job.state === "failed" ? "failed" : "failed, tried again later"), " ", moment(at)];

function open(queue, row) {
  opened.set(queue, row.deliveries ? null : row.name);
  tell("changed");
}

const set = (row, enabled) => (path) => api(path, { method: "PUT", body: { url: row.url, events: row.events, types: row.types, enabled } });

function button(queue, row, name, words, act, done) {
  const go = async () => {
    await act(of(queue, `webhooks/${encodeURIComponent(row.name)}`));
    toast(done);
  };
  return el("button", { "aria-label": `${name} ${row.name}`, click: () => ask(name, `${row.name}: ${words}`, go) }, name);
}
