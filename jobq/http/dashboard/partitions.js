// Draws the partitions of a queue, with the button of operators.
import { ask } from "./actions.js";
import { $, count, el, patch, plural, toast } from "./parts.js";
import { api, may, of, page } from "./state.js";

const SHOWN = 64; // partitions that the table shows

export const readPartitions = (queue) => api(of(queue, "partitions"));

function resize(row) {
  const words = `Over so many partitions "${row.queue}" is spread. More get jobs within seconds. Fewer: those beyond the number get no new jobs, and workers drain them. No job moves.`;
  ask("Set", words, async (value) => {
    await api(of(row.queue, "partitions"), { method: "PUT", body: { partitions: value } });
    toast(`${row.queue} has ${plural(value, "partition")}.`);
  }, { number: row.partitions, unit: "Partitions", least: Math.max(1, row.homes), most: 256 });
}

function line(jobs, number, { partitions, total, length }) {
  return el("tr", { key: number },
    el("td", { class: "num" }, number),
    el("td", { class: "num" }, count(jobs)),
    el("td", { class: "num" }, total ? `${Math.round((100 * jobs) / total)} %` : "-"),
    el("td", null, number >= partitions ? (jobs ? "drained: gets no new jobs" : "empty: gets no new jobs") : total > 1000 && jobs * length > 3 * total ? "more than three times its share" : ""));
}

export function drawPartitions() {
  const { partitions: row } = page;
  const node = $("partitions");
  node.hidden = !row || row.most === 1;
  if (node.hidden) return;
  const total = row.jobs.reduce((sum, jobs) => sum + jobs, 0);
  const about = { partitions: row.partitions, total, length: row.jobs.length };
  patch(node,
    el("div", { class: "row" }, el("h2", null, plural(row.partitions, "partition")), may("admin") && el("button", { class: "push", click: () => resize(row) }, "Set partitions")),
    el("p", { class: "soft" }, row.homes ? `Jobs with keys, limits or groups are in the first ${count(row.homes)}.` : "There was no job with keys, limits or a group yet."),
    el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, ["partition", "unfinished jobs", "share", ""].map((name, place) => el("th", { scope: "col", class: place < 3 ? "num" : "" }, name)))),
      el("tbody", null, row.jobs.slice(0, SHOWN).map((jobs, number) => line(jobs, number, about))))),
    row.jobs.length > SHOWN ? el("p", { class: "soft" }, `The first ${count(SHOWN)}; jobq partitions show lists all.`) : null);
}
