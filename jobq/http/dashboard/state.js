// The state of the page, and its requests to REST. Nothing here draws.
import { now } from "./parts.js";

export const STATES = ["waiting", "delayed", "active", "completed", "failed"];
const SCOPES = ["public", "read", "write", "admin"];

export const page = {
  session: null, // {key, scope, login}
  queues: [],
  route: {}, // {queue, state, type} or {job}
  stats: null,
  workers: null,
  limits: [],
  breakers: [],
  rule: null, // the rule whose keys are shown
  keys: [],
  schedules: null,
  groups: null,
  groupOrder: "waiting",
  partitions: null, // {partitions, homes, most, jobs}
  performance: null,
  published: null, // the types that workers and servers publish
  webhooks: null,
  window: "1h", // of the table of types
  rate: null, // finished jobs per second
  list: { jobs: [], cursors: [""], next: null },
  why: null, // why the queue runs no job
  job: null, // {row, logs, why}
};

// Code that changes the state sends an event, and app.js draws. "changed": request REST again. "locked": a key is needed.
const told = new EventTarget();
export const tell = (what, detail) => told.dispatchEvent(new CustomEvent(what, { detail }));
export const hear = (what, act) => told.addEventListener(what, (event) => act(event.detail));

export class Refused extends Error {}

export async function api(path, { method = "GET", body, text = body === undefined ? undefined : JSON.stringify(body), exact = false } = {}) {
  const options = { method, credentials: "same-origin", cache: "no-store" };
  if (text !== undefined) Object.assign(options, { body: text, headers: { "Content-Type": "application/json" } });
  const response = await fetch(path, options);
  const date = Date.parse(response.headers.get("Date"));
  if (date && Math.abs(date - Date.now() - now.skew) > 2000) now.skew = date - Date.now();
  const answer = response.status === 204 ? "null" : await response.text();
  const value = parse(answer, exact);
  if (response.ok) return value;
  if (response.status === 401 && path !== "dashboard/login") tell("locked", page.session && value.detail);
  throw new Refused(value?.detail ?? `the server answers ${response.status}`);
}

// exact: numbers beyond a double stay as they are written.
function parse(answer, exact) {
  if (!exact || !JSON.rawJSON) return JSON.parse(answer);
  return JSON.parse(answer, (_, value, context) =>
    typeof value === "number" && context && String(value) !== context.source ? JSON.rawJSON(context.source) : value);
}

export const of = (queue, path) => `queues/${encodeURIComponent(queue)}/${path}`;
export const jobPath = (id, rest = "") => `jobs/${encodeURIComponent(id)}${rest}`;
export const hrefOf = (queue, state, type) => `#/q/${encodeURIComponent(queue)}/${state}${type ? `?${new URLSearchParams({ type })}` : ""}`;
export const may = (scope) => page.session !== null && SCOPES.indexOf(page.session.scope) >= SCOPES.indexOf(scope);
