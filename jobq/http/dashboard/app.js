// The operators' page. What jobs bring along (types, payloads, errors, logs) becomes text nodes only: no text is
// ever read as HTML, and links are made of our own routes.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = ["waiting", "delayed", "active", "completed", "failed"];
const SCOPES = ["public", "read", "write", "admin"];
const ALIVE = 30_000; // ms since its last heartbeat that a worker counts as alive
const SHOWN = 100_000; // characters of a payload or result that are shown
const PAGE = 25;
const AHEAD = 500; // jobs looked at to find a waiting job's place

let session = null; // {key, scope, login}
let queues = [];
let route = {};
let now = { skew: 0 }; // the server's clock against ours, ms
let stats = null;
let workers = null;
let rate = null; // jobs finished a second
let list = { jobs: [], cursors: [""], next: null };
let job = null; // {row, logs, ahead}
let stream = null;
let shown = 0; // counts routes, so that late answers for an earlier one are dropped

// -- small things ---------------------------------------------------------------------------------------------------

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(9).filter((child) => child != null && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

const text = (value, kind = "") => el("span", { class: `data ${kind}` }, value);
const count = (number) => number.toLocaleString("en");
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
const time = () => Date.now() + now.skew;

function span(ms) {
  const units = [[86_400_000, "d"], [3_600_000, "h"], [60_000, "min"], [1000, "s"], [1, "ms"]];
  const [unit, name] = units.find(([unit]) => ms >= unit) ?? [1, "ms"];
  return `${Number((ms / unit).toPrecision(ms / unit < 100 ? 2 : 3))} ${name}`;
}

function moment(at) {
  if (at == null) return "";
  const past = time() - at;
  const words = Math.abs(past) < 1000 ? "now" : past > 0 ? `${span(past)} ago` : `in ${span(-past)}`;
  return el("time", { datetime: new Date(at).toISOString(), title: clock(at) }, words);
}

const clock = (at) => new Date(at).toLocaleString("sv", { timeZoneName: "short" });
const both = (at) => (at == null ? null : [clock(at), " (", moment(at), ")"]);
const pretty = (value) => JSON.stringify(value, null, 2);

function block(value) {
  const whole = pretty(value);
  const pre = el("pre", null, whole.slice(0, SHOWN));
  const rest = whole.length - SHOWN;
  return rest > 0 ? [pre, el("p", { class: "soft" }, `${count(rest)} more characters; "raw" has them all.`)] : pre;
}

function toast(words, bad = false) {
  const node = $("toast");
  node.textContent = words;
  node.className = bad ? "bad" : "";
  node.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (node.hidden = true), bad ? 8000 : 4000);
}

// -- the server -----------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function api(path, { method = "GET", body, exact = false } = {}) {
  const options = { method, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) Object.assign(options, { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  const response = await fetch(path, options);
  const date = Date.parse(response.headers.get("Date"));
  if (date && Math.abs(date - Date.now() - now.skew) > 2000) now.skew = date - Date.now();
  const answer = response.status === 204 ? "null" : await response.text();
  const value = parse(answer, exact);
  if (response.ok) return value;
  if (response.status === 401 && path !== "dashboard/login") askForKey(session && value.detail);
  throw new Refused(value?.detail ?? `the server answers ${response.status}`);
}

// exact: numbers that a double does not hold are kept as they are written
function parse(answer, exact) {
  if (!exact || !JSON.rawJSON) return JSON.parse(answer);
  return JSON.parse(answer, (_, value, context) =>
    typeof value === "number" && context && String(value) !== context.source ? JSON.rawJSON(context.source) : value);
}

const of = (queue, path) => `queues/${encodeURIComponent(queue)}/${path}`;
const jobPath = (id, rest = "") => `jobs/${encodeURIComponent(id)}${rest}`;
const may = (scope) => session !== null && SCOPES.indexOf(session.scope) >= SCOPES.indexOf(scope);

function listen(queue) {
  stream?.close();
  stream = null;
  if (queue === null || document.hidden) return;
  const mine = (stream = new EventSource(of(queue, "events")));
  mine.addEventListener("stats", (event) => {
    live(true, "live");
    heard(JSON.parse(event.data));
  });
  mine.addEventListener("problem", (event) => live(false, JSON.parse(event.data).detail));
  mine.addEventListener("error", () => {
    live(false, "connecting ...");
    if (mine.readyState !== EventSource.CLOSED || stream !== mine) return;
    stream = null;
    // refused for good (too many streams, a session that ended): ask by hand, then try again
    setTimeout(() => stream === null && !document.hidden && start(), 5000);
  });
}

function live(ok, words) {
  const node = $("live");
  node.className = `live ${ok ? "ok" : "bad"}`;
  if (node.textContent !== words) node.textContent = words;
}

function heard(found) {
  if (stats && stats.queue === found.queue && stats.heard) {
    const seconds = (performance.now() - stats.heard) / 1000;
    const done = found.completed_total + found.failed_total - stats.completed_total - stats.failed_total;
    if (seconds > 0.5) rate = Math.max(0, done / seconds);
  }
  const changed = !stats || [...STATES, "retried_total", "paused"].some((name) => stats[name] !== found[name]);
  stats = { ...found, heard: performance.now() };
  if (route.job) drawJob();
  else drawStats();
  if (changed || job?.row.state === "active") refresh.due = true; // progress moves no count
}

// Lists and workers are asked for only while something changes, and never more than every 2 s.
async function refresh(always = false) {
  if (document.hidden || session === null || (route.job && !job && !always) || (!always && !refresh.due && performance.now() - refresh.last < 10_000)) return;
  refresh.due = false;
  refresh.last = performance.now();
  const at = shown;
  try {
    await (route.job ? loadJob(at) : loadLists(at));
  } catch (error) {
    if (at !== shown) return; // another page is shown now, or the form
    if (route.job && error instanceof Refused) gone(error.message);
    else failed(error);
  }
}
refresh.last = 0;

// The job of this page is not there (any more).
function gone(words) {
  shown += 1;
  job = null;
  $("main").key = null;
  $("main").replaceChildren(el("h1", { class: "data" }, route.job), notes([["bad", words]]));
}

function failed(error) {
  if (session === null && !$("login").hidden) return; // the form says it
  if (error instanceof Refused) toast(error.message, true);
  else live(false, "the server does not answer");
}

async function loadLists(at) {
  const { queue, state, type } = route;
  const query = new URLSearchParams({ state, limit: PAGE });
  if (type) query.set("type", type);
  const cursor = list.cursors.at(-1);
  if (cursor) query.set("cursor", cursor);
  const [page, found, all] = await Promise.all([
    api(of(queue, `jobs?${query}`)), api(of(queue, "workers")), api("queues")]);
  if (at !== shown) return;
  [list.jobs, list.next, workers, queues] = [page.jobs, page.cursor, found.workers, all.queues];
  drawQueues();
  drawStats();
  drawWorkers();
  drawList();
}

async function loadJob(at) {
  const id = route.job;
  const [row, logs] = await Promise.all([api(jobPath(id), { exact: true }), api(jobPath(id, "/logs"))]);
  const found = (await api(of(row.queue, "workers"))).workers;
  let ahead = null;
  if (row.state === "waiting") {
    const front = (await api(of(row.queue, `jobs?state=waiting&limit=${AHEAD}`))).jobs;
    const place = front.findIndex((one) => one.id === row.id);
    ahead = place < 0 ? `at least ${front.length}` : place;
  }
  if (at !== shown) return;
  if (stats?.queue !== row.queue) {
    stats = null;
    listen(row.queue);
  }
  [job, workers] = [{ row, logs: logs.logs, ahead }, found];
  drawQueues();
  drawJob();
}

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

const sum = (rows, name) => rows.reduce((total, row) => total + row[name], 0);

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

const notes = (lines) => el("ul", { class: "notes" }, lines.map(([kind, words]) => el("li", { class: `data ${kind}` }, words)));

// -- drawing: a queue -----------------------------------------------------------------------------------------------

const hrefOf = (queue, state, type) => `#/q/${encodeURIComponent(queue)}/${state}${type ? `?${new URLSearchParams({ type })}` : ""}`;

function drawQueues() {
  $("queues").replaceChildren(...queues.map((queue) => {
    const on = queue.name === (route.queue ?? job?.row.queue);
    const unfinished = queue.waiting + queue.active;
    return el("a", { href: hrefOf(queue.name, "waiting"), class: on ? "on" : "", "aria-current": on && "page" },
      queue.name, queue.paused && " (paused)", unfinished > 0 && ` ${count(unfinished)}`);
  }));
  $("user").replaceChildren(...(session?.login ? [el("span", { class: "soft" }, `${session.key} (${session.scope}) `), el("button", { click: logout }, "Log out")] : []));
}

function frame() {
  $("main").replaceChildren(
    el("div", { class: "row", id: "head" }), el("div", { id: "notes" }), el("div", { class: "tiles", id: "tiles" }),
    el("div", { class: "split" },
      el("section", { class: "panel" }, el("div", { class: "row", id: "filter" }), el("div", { id: "rows" }), el("div", { class: "buttons", id: "pages" })),
      el("aside", null, ["chart", "times", "workers"].map((id) => el("section", { class: "panel", id })))));
  drawFilter();
}

function drawStats() {
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

// Replace what a node holds only when it would differ: what is hovered, focused or selected stays.
function put(node, key, make) {
  if (node.key === key) return;
  node.key = key;
  node.replaceChildren(...make().filter(Boolean));
}

const fact = (name, ...value) => [el("dt", null, name), el("dd", { class: "data" }, ...value)];

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

function svg(tag, attributes, children = []) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(Boolean));
  return node;
}

function bar(place, y, height, kind, title) {
  if (!height) return null;
  const node = svg("rect", { x: place * 4 + 0.4, y, width: 3.2, height, class: kind });
  const words = svg("title", {});
  words.textContent = title;
  node.append(words);
  return node;
}

function drawWorkers() {
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

function drawList() {
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

function drawJob() {
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

// -- doing ----------------------------------------------------------------------------------------------------------

function verbs(row) {
  const { id, state } = row;
  const post = (verb, done, body) => async () => { await api(jobPath(id, `/${verb}`), { method: "POST", body }); toast(done); };
  const button = (scope, name, words, act, more) => may(scope) &&
    el("button", { class: more?.danger ? "danger" : "", click: () => ask(name, words, act, more) }, name);
  const ended = state === "failed" || state === "completed", startable = state === "waiting" || state === "delayed";
  return [
    ended && button("write", state === "failed" ? "Retry" : "Run again", "It goes back to waiting with fresh attempts.", post("retry", "It is waiting again.")),
    state === "delayed" && button("write", "Run now", "It goes to waiting at once.", post("promote", "It is waiting.")),
    startable && button("write", "Priority", "It keeps its place among those of the same priority.", (value) => post("priority", `Its priority is ${value}.`, { priority: value })(), { number: row.priority }),
    !ended && button("write", "Kill", state === "active" ? "Its handler is stopped, and it goes to failed." : "It goes to failed without having run.", post("kill", "It is killed."), { danger: true }),
    state !== "active" && button("admin", "Remove", "It goes with all that is known of it, for good.", async () => {
      await api(jobPath(id), { method: "DELETE" });
      toast("It is removed.");
      [job, stats] = [null, null];
      location.hash = hrefOf(row.queue, state);
      show();
    }, { danger: true }),
  ].filter(Boolean);
}

function ask(name, words, act, { number = null } = {}) {
  $("asked").textContent = `${name}?`;
  $("said").textContent = words;
  $("yes").textContent = name;
  $("number").hidden = number === null;
  $("value").disabled = number === null;
  $("value").value = number ?? 0;
  const dialog = $("dialog");
  dialog.returnValue = "";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      await act(Number($("value").value));
      refresh(true);
    } catch (error) {
      failed(error);
    }
  };
  dialog.showModal();
}

const pause = () => ask("Pause", `No worker takes another job of "${route.queue}", on any machine, until it is resumed. Running jobs go on.`, set("pause", "The queue is paused."));
const resume = () => ask("Resume", `Workers take jobs of "${route.queue}" again.`, set("resume", "The queue goes on."));

function set(verb, done) {
  const queue = route.queue;
  return async () => { await api(of(queue, `jobs/${verb}`), { method: "POST" }); toast(done); };
}

function retryAll() {
  const queue = route.queue;
  ask("Retry all failed", `All ${plural(stats?.failed ?? 0, "failed job")} of "${queue}", whatever their type, go back to waiting with fresh attempts.`, async () => {
    const began = Date.now();
    let moved = 0, page;
    do {
      // what fails again meanwhile is not meant
      page = (await api(of(queue, `jobs/retry?state=failed&limit=1000&older_than=${Date.now() - began}`), { method: "POST" })).count;
      moved += page;
      toast(`${plural(moved, "job")} waiting again.`);
    } while (page === 1000);
  });
}

async function logout() {
  await api("dashboard/logout", { method: "POST" }).catch(failed);
  askForKey();
}

function askForKey(words) {
  shown += 1;
  session = null;
  listen(null);
  live(false, "logged out");
  for (const id of ["main", "queues", "user"]) $(id).replaceChildren();
  [$("main").key, stats, workers, job] = [null, null, null, null];
  $("login").hidden = false;
  $("refused").textContent = words ?? "";
  $("key").focus();
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("refused").textContent = "";
  try {
    await api("dashboard/login", { method: "POST", body: { key: $("key").value } });
    $("key").value = "";
    await start();
  } catch (error) {
    $("refused").textContent = error.message;
  }
});

// -- routes: #/q/QUEUE/STATE?type=T, #/job/ID -----------------------------------------------------------------------

function read(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [kind, name, state] = path.split("/").map(decode);
  if (kind === "job" && name) return { job: name };
  const usual = queues.find((queue) => queue.default) ?? queues[0];
  return { queue: kind === "q" && name ? name : usual?.name, state: [...STATES, "blocked"].includes(state) ? state : "waiting", type: new URLSearchParams(query).get("type") ?? "" };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  if (session === null) return;
  const before = route.queue ?? job?.row.queue;
  route = read(location.hash);
  shown += 1;
  job = null;
  list = { jobs: [], cursors: [""], next: null };
  $("main").key = null;
  document.title = `${route.job ?? route.queue ?? ""} - jobq`;
  drawQueues();
  if (route.job) {
    $("main").replaceChildren(el("p", { class: "soft" }, "Loading ..."));
  } else if (route.queue === undefined) {
    $("main").replaceChildren(el("p", null, "This key reaches no queue of this server."));
    return;
  } else {
    frame();
    if (before !== route.queue) [stats, workers, rate] = [null, null, null];
    if (before !== route.queue || stream === null) listen(route.queue);
    drawStats();
  }
  refresh(true);
}

async function start() {
  try {
    session = await api("dashboard/session");
    queues = (await api("queues")).queues;
  } catch (error) {
    failed(error);
    if (!(error instanceof Refused)) setTimeout(start, 3000);
    return;
  }
  $("login").hidden = true;
  route = {};
  show();
}

addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => {
  if (session === null) return;
  listen(document.hidden ? null : (route.queue ?? job?.row.queue ?? null));
  refresh(true);
});
setInterval(refresh, 2000);
start();
