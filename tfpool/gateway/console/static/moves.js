// Models on their way between workers, and requests that wait.

import { each, h, put, say } from "./dom.js";
import { ago, bytes, count, counted, duration } from "./format.js";
import { mark } from "./marks.js";

const SHOWN = 12;
const OVER = ["DONE", "ABORTED"];
const STAGES = ["PLANNED", "LOADING", "WARMING", "ROUTED", "DRAINING", "UNLOADING", "DONE"];

function words(change) {
  const what = `${change.model}:${change.version}`;
  const { source, target } = change;
  return {
    load: `Load ${what} on ${target}`,
    replicate: `Replicate ${what} on ${target}`,
    migrate: `Move ${what} from ${source} to ${target}`,
    drop: `Drop ${what} from ${source}`,
    evict: `Evict ${what} from ${source}`,
    inline: `Inline ${what} on ${target}`,
    map: `Map ${what} on ${source}`,
  }[change.kind] ?? `${change.kind} ${what}`;
}

function makeMove() {
  const state = h("span", { class: "state" });
  const text = h("span", { class: "move-text" });
  const when = h("span", { class: "note" });
  const why = h("span", { class: "note move-why" });
  const fill = h("span", { class: "bar-fill" });
  const bar = h("span", { class: "bar", "aria-hidden": "true" }, fill);
  return { node: h("li", {}, h("div", { class: "move-head" }, text, state), bar, why, when), state, text, when, why, fill, bar };
}

function tellMove(part, change, now) {
  const over = OVER.includes(change.phase);
  const since = Math.max(0, now - change.begun);
  mark(part.state, change.phase);
  say(part.text, words(change));
  put(part.text, "title", words(change));
  const took = over ? `took ${duration(change.seconds)}, ${ago(Math.max(0, since - change.seconds))}` : `for ${duration(since)}`;
  say(part.when, `${change.bytes ? `${bytes(change.bytes)}, ` : ""}${took}`);
  say(part.why, change.error ?? [change.by === "hand" ? "by hand" : "", change.reason].filter(Boolean).join(": "));
  put(part.why, "data-kind", change.error ? "bad" : null);
  put(part.bar, "hidden", over);
  part.fill.style.width = `${((STAGES.indexOf(change.phase) + 1) / STAGES.length) * 100}%`;
}

export function moves(node, note, state) {
  state.watch(() => {
    const rows = [...state.rows("changes")].sort((a, b) => b.id - a.id);
    const active = rows.filter((row) => !OVER.includes(row.phase));
    const past = rows.filter((row) => OVER.includes(row.phase));
    const settled = state.head?.settled === false ? "the pool is still loading" : "";
    say(note, [active.length ? `${count(active.length)} under way` : "none under way", settled].filter(Boolean).join(", "));
    put(node, "data-empty", rows.length ? null : "Nothing has moved yet.");
    each(node, [...active, ...past].slice(0, SHOWN), (row) => row.id, makeMove, (part, row) => tellMove(part, row, state.head.at));
  });
}

function makeQueue() {
  const name = h("span", { class: "move-text" });
  const rows = h("span", { class: "number" });
  const about = h("span", { class: "note" });
  const fill = h("span", { class: "bar-fill" });
  return { node: h("li", {}, h("div", { class: "move-head" }, name, rows), h("span", { class: "bar", "aria-hidden": "true" }, fill), about), name, rows, about, fill };
}

export function queues(node, note, state) {
  state.watch(() => {
    const rows = [...state.rows("queues")].sort((a, b) => b.rows - a.rows);
    const most = rows[0]?.rows ?? 1;
    say(note, rows.length ? `${counted(rows.length, "queue")} with requests` : "nothing waits");
    put(node, "data-empty", rows.length ? null : "Every request has a worker at once.");
    each(node, rows.slice(0, SHOWN), (row) => row.key, makeQueue, (part, row) => {
      say(part.name, `${row.model}:${row.version}`);
      say(part.rows, counted(row.rows, "row"));
      say(part.about, `${row.signature}, the oldest for ${duration(row.oldest_ms / 1000)}, ${row.batch_rows_mean} rows a batch`);
      part.fill.style.width = `${(row.rows / most) * 100}%`;
    });
  });
}
