// The operators' page: what it knows, what it asks of REST, and what its buttons do.
import { drawJob, drawList, drawQueues, drawStats, drawWorkers, frame, hrefOf } from "./draw.js";
import { $, el, notes, now, plural, toast } from "./parts.js";

export const STATES = ["waiting", "delayed", "active", "completed", "failed"];
const SCOPES = ["public", "read", "write", "admin"];
const PAGE = 25;
const AHEAD = 500; // jobs looked at to find a waiting job's place

export let session = null; // {key, scope, login}
export let queues = [];
export let route = {};
export let stats = null;
export let workers = null;
export let rate = null; // jobs finished a second
export let list = { jobs: [], cursors: [""], next: null };
export let job = null; // {row, logs, ahead}
let stream = null;
let shown = 0; // counts routes, so that late answers for an earlier one are dropped

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
export const jobPath = (id, rest = "") => `jobs/${encodeURIComponent(id)}${rest}`;
export const may = (scope) => session !== null && SCOPES.indexOf(session.scope) >= SCOPES.indexOf(scope);

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
export async function refresh(always = false) {
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

// -- doing ----------------------------------------------------------------------------------------------------------

export function verbs(row) {
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

export const pause = () => ask("Pause", `No worker takes another job of "${route.queue}", on any machine, until it is resumed. Running jobs go on.`, set("pause", "The queue is paused."));
export const resume = () => ask("Resume", `Workers take jobs of "${route.queue}" again.`, set("resume", "The queue goes on."));

function set(verb, done) {
  const queue = route.queue;
  return async () => { await api(of(queue, `jobs/${verb}`), { method: "POST" }); toast(done); };
}

export function retryAll() {
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

export async function logout() {
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
