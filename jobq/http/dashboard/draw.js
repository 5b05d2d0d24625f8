// Draws the state of the page: a queue or a job. Links contain only our own routes.
import { logout, pause, resume, retryAll, verbs } from "./actions.js";
import { $, block, both, clock, count, el, fact, moment, notes, patch, plural, pretty, span, sum, svg, text, time } from "./parts.js";
import { hrefOf, jobPath, may, page, STATES, tell } from "./state.js";
import { obstacles, why } from "./why.js";

const panel = (id) => el("section", { class: "panel", id });

// -- a queue --------------------------------------------------------------------------------------------------------

export function drawQueues() {
  const { session, queues, route, job } = page;
  patch($("queues"), queues.map((queue) => {
    const on = queue.name === (route.queue ?? job?.row.queue);
    const unfinished = queue.waiting + queue.active;
    return el("a", { key: queue.name, href: hrefOf(queue.name, "waiting"), class: on ? "on" : "", "aria-current": on && "page" },
      queue.name, queue.paused && " (paused)", unfinished > 0 && ` ${count(unfinished)}`);
  }));
  patch($("user"), session?.login ? [el("span", { class: "soft" }, `${session.key} (${session.scope}) `), el("button", { click: logout }, "Log out")] : []);
}

export function frame() {
  $("main").replaceChildren(
    el("div", { class: "row", id: "head" }, el("h1", null, page.route.queue)), el("div", { id: "notes" }), el("div", { class: "tiles", id: "tiles" }),
    el("div", { class: "split" },
      el("section", { class: "panel", id: "jobs", "aria-label": "Jobs" },
        el("div", { class: "row", id: "filter" }), el("div", { id: "rows", mouseleave: settle, focusout: settle }), el("p", { id: "held", class: "soft", role: "status" }), el("div", { class: "buttons", id: "pages" })),
      el("aside", { "aria-label": "Numbers and workers" }, ["chart", "times", "workers"].map(panel))),
    el("section", { class: "panel", id: "limits", hidden: true, "aria-label": "Limits and circuit breakers" }),
    el("section", { class: "panel", id: "partitions", hidden: true, "aria-label": "Partitions" }),
    el("section", { class: "panel", id: "groups", hidden: true, "aria-label": "Groups" }),
    el("section", { class: "panel", id: "schedules", hidden: true, "aria-label": "Schedules" }),
    el("section", { class: "panel", id: "types", hidden: true, "aria-label": "Types" }),
    el("section", { class: "panel", id: "webhooks", hidden: true, "aria-label": "Webhooks" }));
  drawFilter();
}

export function drawStats() {
  const { stats } = page;
  if (!stats || !$("tiles")) return;
  const { queue, state } = page.route;
  patch($("head"), el("h1", null, queue), stats.paused && el("span", { class: "state paused" }, "paused"),
    stats.closed_until && el("span", { class: "state paused" }, "closed, opens ", moment(stats.closed_until)),
    stats.aging_ms > 0 && el("span", { class: "state", title: "So much waiting is worth a step of priority." }, "aging ", span(stats.aging_ms)),
    may("admin") && el("button", { class: "push", click: stats.paused ? resume : pause }, stats.paused ? "Resume" : "Pause"));
  const lines = obstacles(page.why);
  patch($("notes"), lines.length ? notes(lines) : null);
  const names = [...STATES, ...["held", "blocked"].filter((state) => stats[state])];
  patch($("tiles"), names.map((name) =>
    el("a", { href: hrefOf(queue, name), class: `tile ${name} ${stats[name] ? "some" : ""} ${name === state ? "on" : ""}`, "aria-current": name === state && "true" },
      el("b", null, count(stats[name])), el("span", null, name))));
  drawChart();
  const quantile = (latency, name) => (latency ? span(latency[name]) : "-");
  const line = (name, latency) => el("tr", null, el("th", { scope: "row" }, name), ["p50", "p90", "p99"].map((q) => el("td", { class: "num" }, quantile(latency, q))));
  patch($("times"),
    el("h2", null, "Latency"),
    el("table", null,
      el("thead", null, el("tr", null, el("th", { scope: "col" }, "time"), ["p50", "p90", "p99"].map((q) => el("th", { class: "num" }, q)))),
      el("tbody", null, line("wait until it runs", stats.wait), line("run", stats.run))),
    el("dl", { class: "facts" },
      fact("oldest waiting", stats.oldest_waiting_ms == null ? "-" : span(stats.oldest_waiting_ms)),
      fact("next delayed due", stats.next_due_ms == null ? "-" : stats.next_due_ms ? `in ${span(stats.next_due_ms)}` : "now"),
      fact("since the queue began", `${count(stats.completed_total)} completed, ${count(stats.failed_total)} failed, ${count(stats.retried_total)} retried${stats.snoozed_total ? `, ${count(stats.snoozed_total)} snoozed` : ""}${stats.rate_limited_total ? `, ${count(stats.rate_limited_total)} rate limited` : ""}${stats.expired_total ? `, ${count(stats.expired_total)} expired` : ""}${stats.duplicates_total ? `, ${count(stats.duplicates_total)} not added because another job held the key` : ""}${stats.dropped_total ? `, ${count(stats.dropped_total)} dropped by limits` : ""}${stats.replaced_oldest_total ? `, ${count(stats.replaced_oldest_total)} replaced under limits` : ""}${stats.killed_running_total ? `, ${count(stats.killed_running_total)} killed for a newer job` : ""}`),
      stats.unserved_total ? fact("handed back", `${plural(stats.unserved_total, "time")}: the worker did not know the type or could not read the payload`) : null));
}

function drawChart() {
  const { stats, rate } = page;
  const last = Math.floor(time() / 60_000) * 60_000;
  const minutes = new Map(stats.minutes.map((minute) => [minute.at, minute]));
  const hour = Array.from({ length: 60 }, (_, place) => minutes.get(last - (59 - place) * 60_000) ?? { at: last - (59 - place) * 60_000, completed: 0, failed: 0 });
  const top = Math.max(1, ...hour.map((minute) => minute.completed + minute.failed));
  const bars = hour.flatMap((minute, place) => {
    const done = (minute.completed / top) * 46, lost = (minute.failed / top) * 46;
    const floor = done || lost ? 0 : 0.7;
    const title = `${new Date(minute.at).toTimeString().slice(0, 5)}: ${count(minute.completed)} completed, ${count(minute.failed)} failed`;
    return [bar(place, 48 - done, done, "done", title), bar(place, 48 - done - lost, lost, "lost", title), bar(place, 48 - floor, floor, "none", title)];
  });
  const all = sum(hour, "completed") + sum(hour, "failed");
  patch($("chart"),
    el("h2", null, "Finished per minute", el("span", { class: "soft" }, rate === null ? "" : `, now ${rate < 10 ? Math.round(rate * 10) / 10 : count(Math.round(rate))}/s`)),
    svg("svg", { class: "chart", viewBox: "0 0 240 48", preserveAspectRatio: "none", role: "img", "aria-label": `${count(all)} jobs finished in the last hour, at most ${count(top)} a minute` }, bars),
    el("div", { class: "axis" }, el("span", null, "1 h ago"), el("span", null, all ? `highest ${count(top)}` : "nothing yet"), el("span", null, "now")));
}

function bar(place, y, height, kind, title) {
  if (!height) return null;
  const node = svg("rect", { x: place * 4 + 0.4, y, width: 3.2, height, class: kind });
  const words = svg("title", {});
  words.textContent = title;
  node.append(words);
  return node;
}

export function drawWorkers() {
  const rows = page.workers.map((worker) => el("li", { key: worker.id },
    el("div", { class: "row" }, el("b", { class: worker.alive ? "good" : "bad" }, worker.alive ? "alive" : "stale"), text(worker.id, "id"),
      el("span", { class: "push" }, `${count(worker.running)} of ${count(worker.concurrency)} running${worker.reserve ? `, ${worker.reserve.replace("=", " keeps ")}` : ""}`)),
    el("div", { class: "soft data" }, `${worker.host}, pid ${worker.pid}, jobq ${worker.version}; seen `, moment(worker.seen), "; started ", moment(worker.started)),
    worker.idle ? el("div", { class: "soft data" }, `last claim: ${worker.idle.replaceAll("_", " ")}`) : null,
    el("div", { class: "soft data" }, worker.types.length ? `knows ${worker.types.join(", ")}` : "knows no types")));
  patch($("workers"), el("h2", null, "Workers"), rows.length ? el("ul", { class: "plain" }, rows) : el("p", { class: "soft" }, "None. Start some: jobq work TARGET"));
}

function drawFilter() {
  const { queue, state, type } = page.route;
  const input = el("input", { type: "search", placeholder: "type", "aria-label": "only jobs of this type", value: type, maxlength: 128,
    change: () => (location.hash = hrefOf(queue, state, input.value.trim())) });
  $("filter").replaceChildren(el("h2", null, `${state[0].toUpperCase()}${state.slice(1)} jobs`), el("span", { class: "push" }, input),
    ...(state === "failed" && may("admin") ? [el("button", { click: retryAll }, "Retry all failed")] : []));
}

// While the pointer or the focus is in the table, its rows keep their places, so that a click does not hit another job.
// Their cells are updated. Rows are added, removed and moved once the pointer and the focus have left.
let held = null; // The jobs that are shown while the rows keep their places.

function settle() {
  requestAnimationFrame(() => held && $("rows") && !isPointedAt() && drawList());
}

const isPointedAt = () => $("rows").matches(":hover, :focus-within");

export function drawList(turned = false) {
  const { list, route: { state, type } } = page;
  const at = `${state} ${type} ${list.cursors.at(-1)}`;
  const same = $("rows").at === at && !turned;
  $("rows").at = at;
  let jobs = list.jobs;
  if (same && held && isPointedAt()) {
    const newest = new Map(jobs.map((row) => [row.id, row]));
    jobs = held.map((row) => newest.get(row.id) ?? { ...row, left: true });
  }
  held = jobs;
  const changed = jobs.length !== list.jobs.length || jobs.some((row, place) => row.id !== list.jobs[place].id);
  patch($("held"), changed ? "The list has changed. It is drawn anew once the pointer and the focus leave it." : null);
  const [what, when] = { waiting: ["enqueued", "enqueued_at"], delayed: ["due", "run_at"], active: ["enqueued", "enqueued_at"],
    completed: ["finished", "finished_at"], failed: ["finished", "finished_at"], blocked: ["enqueued", "enqueued_at"], held: ["enqueued", "enqueued_at"] }[state];
  const detail = (row) => (state === "completed" ? (row.duration == null ? "" : `ran ${span(row.duration)}`) : state === "active" ? row.worker : row.error);
  const rows = jobs.map((row) => el("tr", { key: row.id, class: row.left ? "left" : "" },
    el("td", null, el("a", { href: `#/job/${encodeURIComponent(row.id)}`, class: "id" }, row.id.split(":").at(-1))),
    el("td", { class: "tight" }, moment(row[when])),
    el("td", { class: "data type wide" }, row.type),
    el("td", { class: "wide" }, detail(row) ? el("div", { class: `data line ${state === "failed" ? "bad" : "soft"}` }, detail(row)) : null),
    el("td", { class: "num" }, row.attempts_made ? `${row.attempts_made} of ${row.attempts ?? "any number"}` : null),
    el("td", { class: "num" }, row.priority || null)));
  const heads = ["job", what, "type", { active: "worker", completed: "duration" }[state] ?? "last error", "attempts", "priority"];
  const table = () => el("div", { class: "scroll" }, el("table", { class: "jobs" },
    el("thead", null, el("tr", null, heads.map((name, place) => el("th", { scope: "col", class: place > 3 ? "num" : "" }, name)))), el("tbody", null, rows)));
  const none = list.next ? "None on this page; there is more to look through." : `No ${state} jobs${type ? ` of the type "${type}"` : ""}.`;
  patch($("rows"), rows.length ? table() : el("p", { class: "soft data" }, none));
  const first = list.cursors.length === 1;
  const turn = (change) => () => { change(); tell("changed"); };
  $("pages").hidden = first && !list.next;
  patch($("pages"), el("button", { disabled: first, click: turn(() => list.cursors.pop()) }, "Back"),
    el("button", { disabled: !list.next, click: turn(() => list.cursors.push(list.next)) }, "Next page"));
}

// -- a job ----------------------------------------------------------------------------------------------------------

const linked = (id) => el("a", { href: `#/job/${encodeURIComponent(id)}`, class: "id" }, id.split(":").at(-1));

export function drawJob() {
  const { job } = page;
  if (!job) return;
  const { row, logs } = job;
  if (!$("about")) $("main").replaceChildren(el("div", { class: "row", id: "title" }), el("div", { id: "why" }), el("div", { class: "row", id: "verbs" }), el("div", { id: "about" }));
  patch($("why"), notes(why(job)));
  patch($("title"), el("h1", { class: "data" }, row.type), el("span", { class: `state ${row.state}` }, row.state),
    text(row.id, "id soft"), el("a", { class: "push", href: jobPath(row.id), target: "_blank", rel: "noopener" }, "raw"));
  patch($("verbs"), verbs(row));
  const progress = typeof row.progress === "number" && row.progress >= 0 && row.progress <= 100;
  const facts = [
    ["attempts", `${row.attempts_made} of ${row.attempts ?? "any number"}`], ["snoozed", row.snoozes ? plural(row.snoozes, "time") : null], ["rate limited", row.rate_limited ? plural(row.rate_limited, "time") : null], ["priority", row.priority || null], ["enqueued", both(row.enqueued_at)], ["delay", row.delay ? span(row.delay) : null],
    ["due", both(row.run_at)], ["lease ends", both(row.lease_until)], ["started", both(row.started_at)], ["finished", both(row.finished_at)],
    ["ran", row.duration == null ? null : span(row.duration)], ["worker", row.worker], ["timeout", row.timeout && span(row.timeout)], ["must start by", both(row.expires_at)], ["must end by", both(row.deadline_at)],
    ["order", row.lifo ? "before the others of its priority" : null], ["slots", row.slots > 1 ? row.slots : null], ["costs", Object.entries(row.costs ?? {}).map(([unit, n]) => `${count(n)} ${unit}`).join(", ")], ["key", row.key], ["limits", row.limits.join(", ")], ["group", row.group], ["schedule", row.schedule?.name], ["partition by", row.partition_by],
    ["backoff", row.backoff?.delays ? row.backoff.delays.map(span).join(", ") : row.backoff && `${row.backoff.type ?? "exponential"}, ${span(row.backoff.delay ?? 1000)}`],
    ["runs again", row.rerun_of && linked(row.rerun_of)], ["run again as", row.reruns?.length ? row.reruns.flatMap((id) => [linked(id), " "]) : null],
    ["kept", row.retention == null ? null : `${span(row.retention)} after its end`],
    ["progress", row.progress == null ? null : progress ? [el("progress", { value: row.progress, max: 100, "aria-label": "progress" }), ` ${row.progress} %`] : pretty(row.progress)],
  ].filter(([, value]) => value != null && value !== "");
  const part = (title, ...inner) => el("section", { key: title.split(",")[0], class: "panel" }, el("h2", null, title), ...inner);
  patch($("about"),
    row.result === null ? [] : part("Result", block(row.result)),
    row.errors.length ? part(row.errors.length > 1 ? "Errors, newest first" : "Errors", row.errors.map(drawError).toReversed()) : [],
    el("div", { key: "columns", class: "columns" }, part("Payload", block(row.payload)), part("Job", el("dl", null, facts.map(([name, value]) => fact(name, value))))),
    row.metadata ? part("Metadata", block(row.metadata)) : [],
    logs.length ? part("Log", el("pre", { tabindex: 0 }, logs.map((line) => `${clock(line.at).slice(11, 19)}  ${line.message}\n`))) : []);
}

function drawError(error, place, { length }) {
  return el("details", { key: place, open: place === length - 1 }, el("summary", { class: "data" }, el("b", null, `${error.type}: ${error.message}`)),
    el("p", { class: "soft" }, error.attempt ? `attempt ${error.attempt}, ` : "", both(error.at), error.worker && ` on ${error.worker}`),
    error.traceback ? el("pre", { tabindex: 0 }, error.traceback) : !may("write") && el("p", { class: "soft" }, "The traceback needs the scope write."));
}
