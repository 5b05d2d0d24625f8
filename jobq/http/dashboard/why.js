// Shows why a job or a queue does not run. The server gives the reasons; nothing here decides.
import { plural, span } from "./parts.js";

const BAD = ["no_worker", "type_unserved", "worker_silent", "failed", "killed"];
const GOOD = ["running", "completed"];
const SOFT = ["ready", "behind", "no_jobs", "only_delayed"];
const UNSTARTED = ["waiting", "held", "delayed", "blocked"];

const kindOf = (code) => (BAD.includes(code) ? "bad" : GOOD.includes(code) ? "good" : SOFT.includes(code) ? "" : "warn");
const lines = (reasons) => reasons.map(({ code, detail }) => [kindOf(code), detail]);

// The reasons why no job of the queue runs, most important first: [[kind, text]]. An idle queue is no news.
export const obstacles = (why) => lines((why?.reasons ?? []).filter(({ code }) => code !== "no_jobs"));

// The reasons of a job, when it starts, and what else its row says about that.
export function why({ row, why }) {
  const found = lines(why.reasons);
  if (!UNSTARTED.includes(row.state)) return found;
  const starts = why.starts_in_ms;
  found.push(["", starts === null ? "Nobody can know when it starts." : starts < 1 ? "It starts now." : `It starts in about ${span(starts)}.`]);
  if (row.unserved) found.push(["warn", `${plural(row.unserved, "time")} a worker took it and gave it back: it could not run it.`]);
  if (row.key) found.push(["", `It has the key "${row.key}": another enqueue with that key may answer with this job, or change it.`]);
  return found;
}
