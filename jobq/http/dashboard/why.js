// Explains why a job does not run.
import { clock, plural, span, sum, time } from "./parts.js";
import { page } from "./state.js";

const ALIVE = 30_000; // A worker counts as alive for these ms after its last heartbeat.

export const isAlive = (worker) => time() - worker.seen < ALIVE;

// The reasons why no job of the queue runs, most important first: [[kind, text]].
export function obstacles(type = null) {
  const found = [];
  if (page.stats?.paused) found.push(["warn", "The queue is paused: no worker takes a job until it is resumed."]);
  if (page.stats?.closed_until > time()) found.push(["warn", `The queue is closed until ${clock(page.stats.closed_until)}: a handler was rate limited, or an operator closed it.`]);
  const { workers } = page;
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

export function why({ row, ahead }) {
  const last = row.errors.at(-1);
  const tried = `attempt ${row.attempts_made} of ${row.attempts ?? "any number"}`;
  const unserved = row.unserved ? [["warn", `${plural(row.unserved, "time")} a worker took it and gave it back: it could not run it.`]] : [];
  if (row.state === "completed") return [["good", `It has run: ${tried}, in ${span(row.duration ?? 0)}.`]];
  if (row.state === "failed") {
    const words = last ? `${last.type}: ${last.message}` : "no record of the error is left";
    return [["bad", `It has failed for good after ${plural(row.attempts_made, "attempt")}: ${words}`], ["", "Retry gives it fresh attempts."]];
  }
  if (row.state === "active") {
    const mine = page.workers?.find((one) => one.id === row.worker);
    const left = row.lease_until - time();
    if (left < 0) return [["warn", `Its worker has not renewed the lease for ${span(-left)}: it is about to be taken from it and run elsewhere.`]];
    if (mine && !isAlive(mine)) return [["warn", `Its worker was last heard of ${span(time() - mine.seen)} ago. Unless it comes back, the job runs elsewhere in ${span(left)}.`]];
    return [["good", `It runs now (${tried}) on ${row.worker ?? "a worker"}.`]];
  }
  if (row.state === "blocked") return [["warn", row.key ? `Another job with the key "${row.key}" runs. This one has the newest data, and runs when that one has ended.` : "It waits for other jobs, which have to end first."]];
  if (row.state === "held") return [["warn", `It is held by its limits (${row.limits.join(", ")}) until one of them has room.`], ...obstacles(row.type)];
  const held = obstacles(row.type);
  const key = row.key ? [["", `It holds the key "${row.key}": another enqueue with that key answers with this job, and may change it.`]] : [];
  if (row.state === "delayed") {
    const due = row.run_at - time();
    const when = due > 0 ? `${clock(row.run_at)}, in ${span(due)}` : "now: a live worker moves it to waiting within a second";
    const snoozed = row.snoozes ? [["", `Its handler has put it off ${plural(row.snoozes, "time")}. That charges no attempt.`]] : [];
    const reason = row.unserved && !row.attempts_made ? "A worker that can run it may recall it; otherwise it is offered again" : row.snoozes ? "It is due again" : last ? `Attempt ${last.attempt} of ${row.attempts ?? "any number"} failed; the next one is due` : "It is delayed until";
    return [["warn", `${reason} ${when}.`], ...snoozed, ...unserved, ...held, ...key];
  }
  const place = ahead === null ? [] : [["", ahead === 0 ? "It is the next one." : `${typeof ahead === "number" ? plural(ahead, "job stands", "jobs stand") : `${ahead} jobs stand`} before it.`]];
  return [...held, ...unserved, ...place, ...key];
}
