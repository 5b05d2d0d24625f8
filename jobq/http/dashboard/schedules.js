// Draws the schedules of a queue, with the buttons of operators.
import { ask } from "./actions.js";
import { $, count, el, moment, patch, plural, span, text, toast } from "./parts.js";
import { api, may, of, page } from "./state.js";

const SHOWN = 100; // schedules that the panel shows

export async function readSchedules(queue) {
  return (await api(of(queue, `schedules?limit=${SHOWN}`))).schedules;
}

export function drawSchedules() {
  const { schedules, route } = page;
  const node = $("schedules");
  node.hidden = !schedules?.length;
  if (node.hidden) return;
  const more = schedules.length === SHOWN ? el("p", { class: "soft" }, `The first ${count(SHOWN)}; jobq schedules ls lists all.`) : null;
  patch(node, el("h2", null, "Schedules"), el("ul", { class: "plain" }, schedules.map((row) => line(route.queue, row))), more);
}

function line(queue, row) {
  const state = row.paused ? "paused" : row.error ? "error" : row.next.length ? "on" : "ended";
  const when = row.every == null ? row.cron.join("; ") || plural(row.at.length, "time") : `every ${span(row.every)}`;
  const last = row.last.map((slot, place) => el("li", { key: `${slot.slot} ${place}` },
    el("b", { class: slot.outcome === "completed" ? "good" : slot.outcome === "failed" ? "bad" : "soft" }, slot.outcome ?? (slot.how === "skipped" ? "skipped" : "unfinished")), " ",
    slot.job_id ? el("a", { href: `#/job/${encodeURIComponent(`${queue}:${slot.job_id}`)}` }, moment(slot.slot)) : moment(slot.slot),
    slot.how === "run" || slot.how === "backfill" ? ` (${slot.how})` : "", slot.missed ? `, ${count(slot.missed)} missed` : ""));
  return el("li", { key: row.name },
    el("div", { class: "row" }, el("b", { class: state === "on" ? "good" : state === "error" ? "bad" : "soft" }, state), text(row.name, "id"),
      row.orphan && el("span", { class: "bad" }, "orphan"), row.differs && el("span", { class: "soft" }, "differs from code"),
      el("span", { class: "push" }, row.next.length ? ["next ", moment(row.next[0])] : "")),
    el("div", { class: "soft data" }, `${row.type}: ${when} (${row.tz}) ${row.words}`),
    row.paused && el("div", { class: "soft data" }, `paused by ${row.paused.by} `, moment(row.paused.at), row.paused.note && `: ${row.paused.note}`),
    row.error && el("div", { class: "bad data" }, row.error),
    last.length > 0 && el("ul", { class: "plain soft" }, last),
    may("admin") && el("div", { class: "buttons" },
      row.paused
        ? button(queue, row, "resume", "Resume", "Slots come again from now on. Those of the pause are not made up.", "The schedule goes on.")
        : button(queue, row, "pause", "Pause", "No slot comes until it is resumed. Deploys do not end a pause.", "The schedule is paused.", {}),
      button(queue, row, "run", "Run now", "A job is enqueued now, besides the slots.", "A job was enqueued.")));
}

function button(queue, row, verb, name, words, done, body) {
  const act = async () => {
    await api(of(queue, `schedules/${encodeURIComponent(row.name)}/${verb}`), { method: "POST", body });
    toast(done);
  };
  return el("button", { "aria-label": `${name} ${row.name}`, click: () => ask(name, `${row.name}: ${words}`, act) }, name);
}
