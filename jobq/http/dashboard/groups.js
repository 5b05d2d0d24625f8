// Draws the groups of a queue, with the buttons of operators.
import { ask } from "./actions.js";
import { $, count, el, moment, patch, toast } from "./parts.js";
import { api, may, of, page, tell } from "./state.js";

const SHOWN = 50; // groups that the table shows
const ORDERS = { waiting: "most jobs", oldest: "longest wait" };

export async function readGroups(queue) {
  return (await api(of(queue, `groups?sort=${page.groupOrder}&limit=${SHOWN}`))).groups;
}

const change = (row, body, done) => async () => {
  await api(of(page.route.queue, `groups/${encodeURIComponent(row.group)}`), { method: "PATCH", body });
  toast(done);
};

function setWeight(row) {
  ask("Set", `"${row.group}" gets so many turns while a group of weight 1 gets one. The rest of its settings stays.`,
    (value) => change(row, { weight: value }, `${row.group}: weight ${value}.`)(), { number: row.weight, unit: "Weight", least: 0.001, most: 1000, step: "any" });
}

function pause(row) {
  const words = row.paused ? "Its jobs start again." : "None of its jobs starts until it is resumed. Running jobs go on.";
  ask(row.paused ? "Resume" : "Pause", `${row.group}: ${words}`, change(row, { paused: !row.paused }, `${row.group} is ${row.paused ? "resumed" : "paused"}.`));
}

function killAll(row) {
  const queue = page.route.queue;
  ask("Kill all", `All ${count(row.held)} held jobs of "${row.group}" go to failed without having run. Running jobs go on.`, async () => {
    let killed = 0, more;
    do {
      more = (await api(of(queue, `jobs/kill?state=held&limit=1000&group=${encodeURIComponent(row.group)}`), { method: "POST" })).count;
      killed += more;
      toast(`${count(killed)} killed.`);
    } while (more === 1000);
  }, { danger: true });
}

function line(row) {
  return el("tr", { key: row.group },
    el("td", { class: "data type" }, row.group),
    el("td", { class: "num" }, count(row.weight)),
    el("td", { class: row.paused ? "bad" : "" }, row.paused ? "paused" : "on"),
    el("td", { class: "num" }, count(row.held)),
    el("td", { class: "num" }, count(row.active)),
    el("td", { class: "tight" }, moment(row.oldest)),
    el("td", { class: "num" }, row.max_queued == null ? "any" : count(row.max_queued)),
    el("td", null, may("admin") && el("span", { class: "buttons" },
      el("button", { "aria-label": `Weight of ${row.group}`, click: () => setWeight(row) }, "Weight"),
      el("button", { "aria-label": `${row.paused ? "Resume" : "Pause"} ${row.group}`, click: () => pause(row) }, row.paused ? "Resume" : "Pause"),
      row.held > 0 && el("button", { class: "danger", "aria-label": `Kill all jobs of ${row.group}`, click: () => killAll(row) }, "Kill all"))));
}

function order(name) {
  const act = () => {
    page.groupOrder = name;
    tell("changed");
  };
  return el("button", { "aria-pressed": String(page.groupOrder === name), click: act }, ORDERS[name]);
}

export function drawGroups() {
  const { groups } = page;
  const node = $("groups");
  node.hidden = !groups?.length;
  if (node.hidden) return;
  const names = [["group"], ["weight", "num"], ["state"], ["held", "num"], ["active", "num"], ["oldest"], ["most held", "num"], [""]];
  patch(node, el("h2", null, "Groups"),
    el("div", { class: "buttons" }, "First: ", order("waiting"), order("oldest")),
    el("div", { class: "scroll" }, el("table", null,
      el("thead", null, el("tr", null, names.map(([name, kind]) => el("th", { scope: "col", class: kind }, name)))),
      el("tbody", null, groups.map(line)))),
    groups.length === SHOWN ? el("p", { class: "soft" }, `The first ${count(SHOWN)}; jobq groups ls lists more.`) : null);
}
