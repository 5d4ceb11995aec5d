// The pool as a whole: requests, waiting and running over the last minutes, and the facts below.

import { Chart, linear, logarithmic } from "./charts.js";
import { each, h, say } from "./dom.js";
import { bytes, count, duration, errors, micros, NONE, percent, rate } from "./format.js";

const QUANTILES = [
  ["p50", "half within"],
  ["p99", "99 % within"],
];

function times(key, title, name) {
  const series = QUANTILES.map(([q, words]) => ({ key: q, name: words, of: (point) => point[key]?.[q] ?? null }));
  const chart = new Chart(name, series.toReversed(), micros, logarithmic);
  const values = QUANTILES.map(() => h("dd"));
  const terms = QUANTILES.map(([q], index) =>
    h("div", {}, h("dt", {}, h("span", { class: `swatch swatch-${q}`, "aria-hidden": "true" }), q), values[index]),
  );
  const node = h("article", { class: "vital" }, h("h2", {}, title), h("dl", { class: "figures" }, ...terms), chart.node);
  const tell = (state) => {
    QUANTILES.forEach(([q], index) => say(values[index], micros(state.head[key]?.[q])));
    chart.draw(state.story, state.head.at);
  };
  return { node, tell };
}

function requests() {
  const series = [
    { key: "p99", name: "requests a second", of: (point) => point.requests },
    { key: "errors", name: "errors a second", of: (point) => point.errors || null },
  ];
  const chart = new Chart("Requests", series, rate, linear);
  const now = h("dd");
  const failing = h("dd");
  const node = h(
    "article",
    { class: "vital" },
    h("h2", {}, "Requests"),
    h(
      "dl",
      { class: "figures" },
      h("div", {}, h("dt", {}, h("span", { class: "swatch swatch-p99", "aria-hidden": "true" }), "a second"), now),
      h("div", {}, h("dt", {}, h("span", { class: "swatch swatch-errors", "aria-hidden": "true" }), "errors"), failing),
    ),
    chart.node,
  );
  const tell = (state) => {
    say(now, rate(state.head.requests));
    say(failing, rate(state.head.errors));
    chart.draw(state.story, state.head.at);
  };
  return { node, tell };
}

function facts(head) {
  const { shm, codes } = head;
  return [
    ["Waiting", head.waiting === 1 ? "1 row" : `${count(head.waiting)} rows`],
    ["Rows a second", rate(head.rows)],
    ["Loads", count(head.loads)],
    ["Evictions", count(head.evictions)],
    ["Shared memory", `${bytes(shm.leased)} of ${bytes(shm.budget)}`],
    ["Broker", `${percent(head.broker)} of a CPU`],
    ["Up", duration(head.uptime)],
    ["Errors", errors(codes) || "none"],
  ];
}

export function vitals(node, state) {
  const parts = [
    requests(),
    times("wait", "Waiting", "Time in the queue"),
    times("run", "Running", "Time of a batch in its model"),
  ];
  const list = h("dl", { class: "facts" });
  node.append(...parts.map((part) => part.node), list);
  const make = ([name]) => {
    const value = h("dd");
    return { node: h("div", {}, h("dt", {}, name), value), value };
  };
  state.watch(() => {
    if (!state.head || state.head.at === undefined) return;
    parts.forEach((part) => part.tell(state));
    each(list, facts(state.head), ([name]) => name, make, (part, [, value]) => say(part.value, value ?? NONE));
  });
}
