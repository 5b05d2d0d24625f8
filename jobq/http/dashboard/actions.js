// The actions of the buttons. Each asks for a confirmation first.
import { $, el, plural, pretty, toast, visible } from "./parts.js";
import { Refused, api, hrefOf, jobPath, may, of, page, tell } from "./state.js";

export function verbs(row) {
  const { id, state } = row;
  const post = (verb, done, body) => async () => { await api(jobPath(id, `/${verb}`), { method: "POST", body }); toast(done); };
  const button = (scope, name, words, act, more) => may(scope) &&
    el("button", { class: more?.danger ? "danger" : "", click: () => ask(name, words, act, more) }, name);
  const ended = state === "failed" || state === "completed", startable = ["waiting", "delayed", "held"].includes(state);
  return [
    ended && button("write", state === "failed" ? "Retry" : "Run again", "It goes back to waiting with fresh attempts.", post("retry", "It is waiting again.")),
    button("write", "Run as new job", "A new job with its options is enqueued. Its payload may be changed here.", async (text) => {
      try { JSON.parse(text); } catch { throw new Refused("The payload is not JSON."); }
      // The text is sent as it is written, because a double cannot hold every number.
      const { id: rerun } = await api(jobPath(id, "/rerun"), { method: "POST", text: `{"payload": ${text}}` });
      toast("A new job was enqueued.");
      location.hash = `#/job/${encodeURIComponent(rerun)}`;
    }, { text: pretty(row.payload) }),
    state === "delayed" && button("write", "Run now", "It goes to waiting at once.", post("promote", "It is waiting.")),
    startable && button("write", "Priority", "It keeps its place among those of the same priority.", (value) => post("priority", `Its priority is ${value}.`, { priority: value })(), { number: row.priority }),
    !ended && button("write", "Kill", state === "active" ? "Its handler is stopped, and it goes to failed." : "It goes to failed without having run.", post("kill", "It is killed."), { danger: true }),
    state !== "active" && button("admin", "Remove", "It goes with all that is known of it, for good.", async () => {
      await api(jobPath(id), { method: "DELETE" });
      toast("It is removed.");
      location.hash = hrefOf(row.queue, state);
    }, { danger: true }),
  ].filter(Boolean);
}

export function ask(name, words, act, { number = null, unit = "Priority, lower runs first", least = -1024, most = 1023, step = 1, text = null, danger = false } = {}) {
  $("asked").textContent = `${name}?`;
  $("said").textContent = visible(words);
  $("yes").textContent = name;
  $("number").hidden = number === null;
  $("unit").textContent = unit;
  [$("value").min, $("value").max, $("value").step] = [least, most, step];
  $("value").disabled = number === null;
  $("value").value = number ?? 0;
  $("words").hidden = text === null;
  $("text").value = text ?? "";
  const dialog = $("dialog");
  dialog.returnValue = "";
  $("no").onclick = () => dialog.close("");
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    try {
      await act(text === null ? Number($("value").value) : $("text").value);
      tell("changed");
    } catch (error) {
      tell("failed", error);
      // What was written is not lost.
      if (text !== null) ask(name, words, act, { text: $("text").value });
    }
  };
  dialog.showModal();
  // Enter confirms, except for actions that cannot be undone.
  (number !== null ? $("value") : text !== null ? $("text") : danger ? $("no") : $("yes")).focus();
}

export const pause = () => ask("Pause", `No worker takes another job of "${page.route.queue}", on any machine, until it is resumed. Running jobs go on.`, set("pause", "The queue is paused."));
export const resume = () => ask("Resume", `Workers take jobs of "${page.route.queue}" again.`, set("resume", "The queue goes on."));

function set(verb, done) {
  const queue = page.route.queue;
  return async () => { await api(of(queue, `jobs/${verb}`), { method: "POST" }); toast(done); };
}

export function retryAll() {
  const queue = page.route.queue;
  ask("Retry all failed", `All ${plural(page.stats?.failed ?? 0, "failed job")} of "${queue}", whatever their type, go back to waiting with fresh attempts.`, async () => {
    const began = Date.now();
    let moved = 0, count;
    do {
      // Do not include jobs that fail again meanwhile.
      count = (await api(of(queue, `jobs/retry?state=failed&limit=1000&older_than=${Date.now() - began}`), { method: "POST" })).count;
      moved += count;
      toast(`${plural(moved, "job")} waiting again.`);
    } while (count === 1000);
  });
}

const put = (path, method, body, done) => async () => { await api(of(page.route.queue, path), { method, body }); toast(done); };
const enc = encodeURIComponent;

export function setConcurrency(row) {
  ask("Set", `At most so many jobs of "${row.rule}" run at once, for each of its keys. It takes the place of what the code declares, and its rates and its action for jobs without room stay.`, (value) =>
    put(`limits/${enc(row.rule)}`, "PUT", { concurrency: value, rate: row.rate, over: row.over }, `${row.rule}: ${value} at once.`)(),
    { number: row.concurrency ?? 1, unit: "Jobs at once, 0 holds all", least: 0, most: 1_000_000_000 });
}

export function resetRule(row) {
  if (row.orphan) ask("Remove", `No published type lists the rule "${row.rule}". It is removed with its numbers.`, put(`limits/${enc(row.rule)}?declared=1`, "DELETE", undefined, "It is removed."), { danger: true });
  else ask("Reset", `The rule "${row.rule}" is again what the code declares, or none.`, put(`limits/${enc(row.rule)}`, "DELETE", undefined, "It is reset."));
}

export const openKey = (key) => ask("Open", `Jobs under "${key}" start again before its closing time is over.`, put(`limits/${enc(key)}/open`, "POST", undefined, "It is open."));
export const tripBreaker = (type) => ask("Trip", `No job of the type "${type}" starts for a time. Then one job finds out whether it works.`, put(`breakers/${enc(type)}/trip`, "POST", {}, "It is open."), { danger: true });
export const resetBreaker = (type) => ask("Close", `Jobs of the type "${type}" start again at once.`, put(`breakers/${enc(type)}/reset`, "POST", undefined, "It is closed."));

export async function logout() {
  try {
    await api("dashboard/logout", { method: "POST" });
  } catch (error) {
    tell("failed", error);
  }
  tell("locked");
}
