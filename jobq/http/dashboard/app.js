// The operators' page: its routes, and the requests to REST for each of them.
import { drawJob, drawList, drawQueues, drawStats, drawWorkers, frame } from "./draw.js";
import { drawGroups, readGroups } from "./groups.js";
import { drawPartitions, readPartitions } from "./partitions.js";
import { drawLimits } from "./limits.js";
import { $, el, notes, now, time, toast, visible } from "./parts.js";
import { drawSchedules, readSchedules } from "./schedules.js";
import { drawTypes, readPerformance } from "./types.js";
import { drawWebhooks, readWebhooks } from "./webhooks.js";
import { api, hear, jobPath, of, page, Refused, STATES } from "./state.js";

const PAGE = 25;
const ENDS = ["completed", "failed", "killed", "expired", "removed"];

let stream = null;
let followed = null; // The events of the job that is shown.
let shown = 0; // Counts routes, so that late answers for an earlier one are dropped.

function listen(queue) {
  stream?.close();
  stream = null;
  if (queue === null || document.hidden) return;
  const mine = (stream = new EventSource(of(queue, "jobs/stats/events")));
  mine.addEventListener("stats", (event) => {
    live(true, "live");
    heard(JSON.parse(event.data));
  });
  mine.addEventListener("problem", (event) => live(false, JSON.parse(event.data).detail));
  mine.addEventListener("error", () => {
    live(false, "connecting ...");
    if (mine.readyState !== EventSource.CLOSED || stream !== mine) return;
    stream = null;
    // The stream is refused (too many streams, or the session has ended): request the stats once, then try again.
    setTimeout(() => stream === null && !document.hidden && start(), 5000);
  });
}

// Request the job again when something happens to it, until it has ended. What happened between its request and the start of
// the stream is among the events of the last seconds. The clocks may differ by two seconds.
function follow(row) {
  followed = new EventSource(`events?${new URLSearchParams({ job: row.id, since: Math.floor(time() - 5000) })}`);
  for (const name of ["started", "progress", "retried", ...ENDS, "missed"]) followed.addEventListener(name, refreshSoon);
  for (const name of ENDS) followed.addEventListener(name, unfollow);
}

// Many events together are answered by one request.
function refreshSoon() {
  refreshSoon.timer ??= setTimeout(() => {
    refreshSoon.timer = null;
    refresh(true);
  }, 50);
}

function unfollow() {
  followed?.close();
  followed = null;
}

function live(ok, words) {
  const node = $("live");
  node.className = `live ${ok ? "ok" : "bad"}`;
  if (node.textContent !== visible(words)) node.textContent = visible(words);
}

function heard(found) {
  const { stats } = page;
  if (stats && stats.queue === found.queue && stats.heard) {
    const seconds = (performance.now() - stats.heard) / 1000;
    const done = found.completed_total + found.failed_total - stats.completed_total - stats.failed_total;
    if (seconds > 0.5) page.rate = Math.max(0, done / seconds);
  }
  const changed = !stats || [...STATES, "retried_total", "paused"].some((name) => stats[name] !== found[name]);
  page.stats = { ...found, heard: performance.now() };
  if (page.route.job) drawJob();
  else drawStats();
  if (changed || page.job?.row.state === "active") refresh.due = true; // Progress changes no count.
}

// Request lists and workers only while something changes, and at most every 2 s.
async function refresh(always = false) {
  if (document.hidden || page.session === null || (page.route.job && !page.job && !always) || (!always && !refresh.due && performance.now() - refresh.last < 10_000)) return;
  refresh.due = false;
  refresh.last = performance.now();
  const at = shown;
  try {
    await (page.route.job ? loadJob(at) : loadLists(at));
  } catch (error) {
    if (at !== shown) return; // Another page is shown now, or the form.
    if (page.route.job && error instanceof Refused) gone(error.message);
    else failed(error);
  }
}
refresh.last = 0;

// The job of this page does not exist (any more).
function gone(words) {
  shown += 1;
  page.job = null;
  $("main").replaceChildren(el("h1", { class: "data" }, page.route.job), notes([["bad", words]]));
}

function failed(error) {
  if (page.session === null && !$("login").hidden) return; // The form shows the error.
  if (error instanceof Refused) toast(error.message, true);
  else live(false, "the server does not answer");
}

const OF_A_QUEUE = ["stats", "workers", "rate", "rule", "schedules", "groups", "performance", "partitions", "webhooks", "why"];

async function loadLists(at) {
  const { queue, state, type } = page.route;
  const list = page.list;
  const query = new URLSearchParams({ state, limit: PAGE });
  if (type) query.set("type", type);
  const cursor = list.cursors.at(-1);
  if (cursor) query.set("cursor", cursor);
  const rule = page.rule;
  const own = (name) => api(of(queue, name)).then((answer) => answer[name]);
  const parts = {
    workers: own("workers"),
    why: api(of(queue, "why")),
    queues: api("queues").then((answer) => answer.queues),
    limits: own("limits"),
    breakers: own("breakers"),
    schedules: readSchedules(queue),
    groups: readGroups(queue),
    performance: readPerformance(queue),
    partitions: page.stats?.partitions > 1 ? readPartitions(queue) : null,
    published: own("types"),
    webhooks: readWebhooks(queue),
  };
  const [found, { keys }, ...read] = await Promise.all([
    api(of(queue, `jobs?${query}`)),
    rule === null ? { keys: [] } : api(of(queue, `limits/${encodeURIComponent(rule)}/keys`)),
    ...Object.values(parts)]);
  if (at !== shown) return;
  Object.keys(parts).forEach((name, number) => { page[name] = read[number]; });
  if (rule === page.rule) page.keys = keys;
  [list.jobs, list.next] = [found.jobs, found.cursor];
  drawQueues();
  drawStats();
  drawWorkers();
  drawLimits();
  drawGroups();
  drawPartitions();
  drawTypes();
  drawWebhooks();
  drawSchedules();
  drawList();
}

async function loadJob(at) {
  const id = page.route.job;
  const [row, { logs }, why] = await Promise.all([api(jobPath(id), { exact: true }), api(jobPath(id, "/logs")), api(jobPath(id, "/why"))]);
  if (at !== shown) return;
  if (page.stats?.queue !== row.queue) {
    page.stats = null;
    listen(row.queue);
  }
  page.job = { row, logs, why };
  if (followed === null && row.finished_at === null) follow(row);
  drawQueues();
  drawJob();
}

// -- keys -----------------------------------------------------------------------------------------------------------

function askForKey(words) {
  shown += 1;
  page.session = null;
  listen(null);
  unfollow();
  live(false, "logged out");
  for (const id of ["main", "queues", "user"]) $(id).replaceChildren();
  [page.stats, page.workers, page.job] = [null, null, null];
  $("login").hidden = false;
  $("refused").textContent = visible(words || "");
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
    $("refused").textContent = visible(error.message);
  }
});

// -- routes: #/q/QUEUE/STATE?type=T, #/job/ID -----------------------------------------------------------------------

function read(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?");
  const [kind, name, state] = path.split("/").map(decode);
  if (kind === "job" && name) return { job: name };
  const usual = page.queues.find((queue) => queue.default) ?? page.queues[0];
  return { queue: kind === "q" && name ? name : usual?.name, state: [...STATES, "blocked", "held"].includes(state) ? state : "waiting", type: new URLSearchParams(query).get("type") ?? "" };
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  if (page.session === null) return;
  const before = page.route.queue ?? page.job?.row.queue;
  const route = (page.route = read(location.hash));
  shown += 1;
  unfollow();
  page.job = null;
  page.list = { jobs: [], cursors: [""], next: null };
  document.title = visible(`${route.job ?? route.queue ?? ""} - jobq`);
  drawQueues();
  if (route.job) {
    $("main").replaceChildren(el("h1", null, "Job"), el("p", { class: "soft" }, "Loading ..."));
  } else if (route.queue === undefined) {
    $("main").replaceChildren(el("h1", null, "No queue"), el("p", null, "This key reaches no queue of this server."));
    return;
  } else {
    frame();
    if (before !== route.queue) for (const name of OF_A_QUEUE) page[name] = null;
    if (before !== route.queue || stream === null) listen(route.queue);
    drawStats();
  }
  refresh(true);
}

async function start() {
  try {
    page.session = await api("dashboard/session");
    page.queues = (await api("queues")).queues;
  } catch (error) {
    failed(error);
    if (!(error instanceof Refused)) setTimeout(start, 3000);
    return;
  }
  $("login").hidden = true;
  page.route = {};
  show();
}

hear("changed", () => refresh(true));
hear("failed", failed);
hear("locked", askForKey);
addEventListener("hashchange", show);
document.addEventListener("visibilitychange", () => {
  if (page.session === null) return;
  unfollow();
  listen(document.hidden ? null : (page.route.queue ?? page.job?.row.queue ?? null));
  refresh(true);
});
setInterval(refresh, 2000);
start();
