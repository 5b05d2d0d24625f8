// What is shown of the state that app.js holds: a queue, a job, and why a job does not run. Links are made of our own
// routes.
import {
  job, jobPath, list, logout, may, pause, queues, rate, refresh, resume, retryAll, route, session, STATES, stats, verbs, workers,
} from "./app.js";
import { $, block, both, clock, count, el, fact, moment, notes, plural, pretty, put, span, sum, svg, text, time } from "./parts.js";

const ALIVE = 30_000; // ms since its last heartbeat that a worker counts as alive

// -- why a job does not run -----------------------------------------------------------------------------------------

const isAlive = (worker) => time() - worker.seen < ALIVE;

// What keeps any job of the queue from running, most important first: [[kind, words]].
function obstacles(type = null) {
  const found = [];
  if (stats?.paused) found.push(["warn", "The queue is paused: no worker takes a job until it is resumed."]);
  if (!workers) return found;
  const alive = workers.filter(isAlive);
  if (!alive.length) {
    const last = workers.length ? ` The last one was heard of ${span(time() - Math.max(...workers.map((one) => one.seen)))} ago.` : "";
    found.push(["bad", `No worker is alive: nothing runs until one starts (jobq work TARGET).${last}`]);
  } else if (type !== null && !alive.some((one) => one.types.includes(type))) {
    const known = [...new Set(alive.flatMap((one) => one.types))].sort().join(", ");
    found.push(["bad", `No live worker knows the type "${type}"; they know: ${known || "none"}. Start one that has the task.`]);
  } else if (alive.every((one) => one.running >= one.concurrency)) {
    found.push(["warn", `All ${plural(sum(alive, "concurrency"), "place")} of the live workers are taken.`]);
  }
  return found;
}

function why({ row, ahead }) {
  const last = row.errors.at(-1);
  const tried = `attempt ${row.attempts_made} of ${row.attempts}`;
  const unserved = row.unserved ? [["warn", `${plural(row.unserved, "time")} a worker took it and gave it back: it did not know its type.`]] : [];
  if (row.state === "completed") return [["good", `It has run: ${tried}, in ${span(row.duration ?? 0)}.`]];
  if (row.state === "failed") {
    const words = last ? `${last.type}: ${last.message}` : "no record of the error is left";
    return [["bad", `It has failed for good after ${plural(row.attempts_made, "attempt")}: ${words}`], ["", "Retry gives it fresh attempts."]];
  }
  if (row.state === "active") {
    const mine = workers?.find((one) => one.id === row.worker);
    const left = row.lease_until - time();
    if (left < 0) return [["warn", `Its worker has not renewed the lease for ${span(-left)}: it is about to be taken from it and run elsewhere.`]];
    if (mine && !isAlive(mine)) return [["warn", `Its worker was last heard of ${span(time() - mine.seen)} ago. Unless it comes back, the job runs elsewhere in ${span(left)}.`]];
    return [["good", `It runs now (${tried}) on ${row.worker ?? "a worker"}.`]];
  }
  if (row.state === "blocked") return [["warn", "It waits for other jobs, which have to end first."]];
  const held = obstacles(row.type);
  const key = row.key ? [["", `It holds the key "${row.key}": until it ends, enqueueing with that key answers with this job.`]] : [];
  if (row.state === "delayed") {
    const due = row.run_at - time();
    const when = due > 0 ? `${clock(row.run_at)}, in ${span(due)}` : "now: a live worker moves it to waiting within a second";
    const reason = row.unserved && !row.attempts_made ? "It is offered again" : last ? `Attempt ${last.attempt} of ${row.attempts} failed; the next one is due` : "It is delayed until";
    return [["warn", `${reason} ${when}.`], ...unserved, ...held, ...key];
  }
  const place = ahead === null ? [] : [["", ahead === 0 ? "It is the next one." : `${typeof ahead === "number" ? plural(ahead, "job stands", "jobs stand") : `${ahead} jobs stand`} before it.`]];
  return [...held, ...unserved, ...place, ...key];
}

// -- drawing: a queue -----------------------------------------------------------------------------------------------

export const hrefOf = (queue, state, type) => `#/q/${encodeURIComponent(queue)}/${state}${type ? `?${new URLSearchParams({ type })}` : ""}`;

export function drawQueues() {
  $("queues").replaceChildren(...queues.map((queue) => {
    const on = queue.name === (route.queue ?? job?.row.queue);
    const unfinished = queue.waiting + queue.active;
    return el("a", { href: hrefOf(queue.name, "waiting"), class: on ? "on" : "", "aria-current": on && "page" },
      queue.name, queue.paused && " (paused)", unfinished > 0 && ` ${count(unfinished)}`);
  }));
  $("user").replaceChildren(...(session?.login ? [el("span", { class: "soft" }, `${session.key} (${session.scope}) `), el("button", { click: logout }, "Log out")] : []));
}

export function frame() {
  $("main").replaceChildren(
    el("div", { class: "row", id: "head" }), el("div", { id: "notes" }), el("div", { class: "tiles", id: "tiles" }),
    el("div", { class: "split" },
      el("section", { class: "panel" }, el("div", { class: "row", id: "filter" }), el("div", { id: "rows" }), el("div", { class: "buttons", id: "pages" })),
      el("aside", null, ["chart", "times", "workers"].map((id) => el("section", { class: "panel", id })))));
  drawFilter();
}

export function drawStats() {
  if (!stats || !$("tiles")) return;
  const { queue, state } = route;
  put($("head"), `${stats.paused} ${may("admin")}`, () => [el("h1", null, queue), stats.paused && el("span", { class: "state paused" }, "paused"),
    may("admin") && el("button", { class: "push", click: stats.paused ? resume : pause }, stats.paused ? "Resume" : "Pause")]);
  const held = stats.waiting + stats.delayed > 0 || stats.paused || !workers?.some(isAlive) ? obstacles() : [];
  $("notes").replaceChildren(...(held.length ? [notes(held)] : []));
  const names = stats.blocked ? [...STATES, "blocked"] : STATES;
  put($("tiles"), names.map((name) => stats[name]).join() + state, () => names.map((name) =>
    el("a", { href: hrefOf(queue, name), class: `tile ${name} ${stats[name] ? "some" : ""} ${name === state ? "on" : ""}`, "aria-current": name === state && "true" },
      el("b", null, count(stats[name])), el("span", null, name))));
  drawChart();
  const quantile = (latency, name) => (latency ? span(latency[name]) : "-");
  const line = (name, latency) => el("tr", null, el("td", null, name), ["p50", "p90", "p99"].map((q) => el("td", { class: "num" }, quantile(latency, q))));
  $("times").replaceChildren(
    el("h2", null, "Latency"),
    el("table", null,
      el("thead", null, el("tr", null, el("th"), ["p50", "p90", "p99"].map((q) => el("th", { class: "num" }, q)))),
      el("tbody", null, line("wait until it runs", stats.wait), line("run", stats.run))),
    el("dl", { class: "facts" },
      fact("oldest waiting", stats.oldest_waiting_ms == null ? "-" : span(stats.oldest_waiting_ms)),
      fact("next delayed due", stats.next_due_ms == null ? "-" : stats.next_due_ms ? `in ${span(stats.next_due_ms)}` : "now"),
      fact("since the queue began", `${count(stats.completed_total)} completed, ${count(stats.failed_total)} failed, ${count(stats.retried_total)} retried`),
      stats.unserved_total ? fact("type unknown", `${plural(stats.unserved_total, "time")} to the worker that took the job`) : null));
}

function drawChart() {
  const last = Math.floor(time() / 60_000) * 60_000;
  const minutes = new Map(stats.minutes.map((minute) => [minute.at, minute]));
  const hour = Array.from({ length: 60 }, (_, place) => minutes.get(last - (59 - place) * 60_000) ?? { at: last - (59 - place) * 60_000, completed: 0, failed: 0 });
  const top = Math.max(1, ...hour.map((minute) => minute.completed + minute.failed));
  put($("chart"), JSON.stringify([hour, rate]), () => {
    const bars = hour.flatMap((minute, place) => {
      const done = (minute.completed / top) * 46, lost = (minute.failed / top) * 46;
      const floor = done || lost ? 0 : 0.7;
      const title = `${new Date(minute.at).toTimeString().slice(0, 5)}: ${count(minute.completed)} completed, ${count(minute.failed)} failed`;
      return [bar(place, 48 - done, done, "done", title), bar(place, 48 - done - lost, lost, "lost", title), bar(place, 48 - floor, floor, "none", title)];
    });
    const all = sum(hour, "completed") + sum(hour, "failed");
    const chart = svg("svg", { class: "chart", viewBox: "0 0 240 48", preserveAspectRatio: "none", role: "img", "aria-label": `${count(all)} jobs finished in the last hour, at most ${count(top)} a minute` }, bars);
    return [el("h2", null, "Finished per minute", el("span", { class: "soft" }, rate === null ? "" : `, now ${rate < 10 ? Math.round(rate * 10) / 10 : count(Math.round(rate))}/s`)),
      chart, el("div", { class: "axis" }, el("span", null, "1 h ago"), el("span", null, all ? `highest ${count(top)}` : "nothing yet"), el("span", null, "now"))];
  });
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
  const rows = workers.map((worker) => el("li", null,
    el("div", { class: "row" }, el("b", { class: isAlive(worker) ? "good" : "bad" }, isAlive(worker) ? "alive" : "stale"), text(worker.id, "id"),
      el("span", { class: "push" }, `${count(worker.running)} of ${count(worker.concurrency)} running`)),
    el("div", { class: "soft data" }, `${worker.host}, pid ${worker.pid}, jobq ${worker.version}; seen `, moment(worker.seen), "; started ", moment(worker.started)),
    el("div", { class: "soft data" }, worker.types.length ? `knows ${worker.types.join(", ")}` : "knows no types")));
  $("workers").replaceChildren(el("h2", null, "Workers"), rows.length ? el("ul", { class: "plain" }, rows) : el("p", { class: "soft" }, "None. Start some: jobq work TARGET"));
}

function drawFilter() {
  const { queue, state, type } = route;
  const input = el("input", { type: "search", placeholder: "type", "aria-label": "only jobs of this type", value: type, maxlength: 128,
    change: () => (location.hash = hrefOf(queue, state, input.value.trim())) });
  $("filter").replaceChildren(el("h2", null, `${state[0].toUpperCase()}${state.slice(1)} jobs`), el("span", { class: "push" }, input),
    ...(state === "failed" && may("admin") ? [el("button", { click: retryAll }, "Retry all failed")] : []));
}

export function drawList() {
  const { state } = route;
  const [what, when] = { waiting: ["enqueued", "enqueued_at"], delayed: ["due", "run_at"], active: ["enqueued", "enqueued_at"],
    completed: ["finished", "finished_at"], failed: ["finished", "finished_at"], blocked: ["enqueued", "enqueued_at"] }[state];
  const detail = (row) => (state === "completed" ? (row.duration == null ? "" : `ran ${span(row.duration)}`) : state === "active" ? row.worker : row.error);
  const rows = list.jobs.map((row) => el("tr", null,
    el("td", null, el("a", { href: `#/job/${encodeURIComponent(row.id)}`, class: "id" }, row.id.split(":").at(-1))),
    el("td", { class: "tight" }, moment(row[when])),
    el("td", { class: "data type wide" }, row.type),
    el("td", { class: "wide" }, detail(row) ? el("div", { class: `data line ${state === "failed" ? "bad" : "soft"}` }, detail(row)) : null),
    el("td", { class: "num" }, row.attempts_made ? `${row.attempts_made} of ${row.attempts} attempts` : null),
    el("td", { class: "num" }, row.priority ? `priority ${row.priority}` : null)));
  const heads = ["job", what, "type", { active: "worker", completed: "" }[state] ?? "last error", "", ""];
  const table = () => el("div", { class: "scroll" }, el("table", { class: "jobs" },
    el("thead", null, el("tr", null, heads.map((name) => el("th", null, name)))), el("tbody", null, rows)));
  const none = list.next ? "None on this page; there is more to look through." : `No ${state} jobs${route.type ? ` of the type "${route.type}"` : ""}.`;
  $("rows").replaceChildren(rows.length ? table() : el("p", { class: "soft data" }, none));
  const first = list.cursors.length === 1;
  const turn = (change) => () => { change(); refresh(true); };
  $("pages").hidden = first && !list.next;
  $("pages").replaceChildren(el("button", { disabled: first, click: turn(() => list.cursors.pop()) }, "Back"),
    el("button", { disabled: !list.next, click: turn(() => list.cursors.push(list.next)) }, "Next page"));
}

// -- drawing: a job -------------------------------------------------------------------------------------------------

export function drawJob() {
  if (!job) return;
  const { row, logs } = job;
  put($("main"), "job", () => [el("div", { class: "row", id: "title" }), el("div", { id: "why" }), el("div", { class: "row", id: "verbs" }), el("div", { id: "about" })]);
  $("why").replaceChildren(notes(why(job)));
  if ($("about").row === JSON.stringify([row, logs])) return;
  $("about").row = JSON.stringify([row, logs]);
  $("title").replaceChildren(el("h1", { class: "data" }, row.type), el("span", { class: `state ${row.state}` }, row.state),
    el("span", { class: "id soft" }, row.id), el("a", { class: "push", href: jobPath(row.id), target: "_blank", rel: "noopener" }, "raw"));
  $("verbs").replaceChildren(...verbs(row));
  const progress = typeof row.progress === "number" && row.progress >= 0 && row.progress <= 100;
  const facts = [
    ["attempts", `${row.attempts_made} of ${row.attempts}`], ["priority", row.priority || null], ["enqueued", both(row.enqueued_at)], ["delay", row.delay ? span(row.delay) : null],
    ["due", both(row.run_at)], ["lease ends", both(row.lease_until)], ["started", both(row.started_at)], ["finished", both(row.finished_at)],
    ["ran", row.duration == null ? null : span(row.duration)], ["worker", row.worker], ["timeout", row.timeout && span(row.timeout)],
    ["order", row.lifo ? "before the others of its priority" : null], ["key", row.key],
    ["backoff", row.backoff && `${row.backoff.type ?? "exponential"}, ${span(row.backoff.delay ?? 1000)}`],
    ["kept", row.retention == null ? null : `${span(row.retention)} after its end`],
    ["progress", row.progress == null ? null : progress ? [el("progress", { value: row.progress, max: 100 }), ` ${row.progress} %`] : pretty(row.progress)],
  ].filter(([, value]) => value != null && value !== "");
  const part = (title, ...inner) => el("section", { class: "panel" }, el("h2", null, title), ...inner);
  $("about").replaceChildren(
    ...(row.result === null ? [] : [part("Result", block(row.result))]),
    ...(row.errors.length ? [part(row.errors.length > 1 ? "Errors, newest first" : "Error", row.errors.toReversed().map(drawError))] : []),
    el("div", { class: "columns" }, part("Payload", block(row.payload)), part("Job", el("dl", null, facts.map(([name, value]) => fact(name, value))))),
    ...(row.metadata ? [part("Metadata", block(row.metadata))] : []),
    ...(logs.length ? [part("Log", el("pre", null, logs.map((line) => `${clock(line.at).slice(11, 19)}  ${line.message}\n`)))] : []));
}

function drawError(error, place) {
  return el("details", { open: place === 0 }, el("summary", { class: "data" }, el("b", null, `${error.type}: ${error.message}`)),
    el("p", { class: "soft" }, error.attempt ? `attempt ${error.attempt}, ` : "", both(error.at), error.worker && ` on ${error.worker}`),
    error.traceback ? el("pre", null, error.traceback) : !may("write") && el("p", { class: "soft" }, "The traceback needs the scope write."));
}
