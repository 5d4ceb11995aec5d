// The workers: how busy they are, and what is in their memory.

import { each, h, put, say } from "./dom.js";
import { bytes, count, counted, percent } from "./format.js";
import { mark } from "./marks.js";
import { treemap } from "./treemap.js";

const PICTURE_HEIGHT = 112;
const SHOWN = 100;
const LEAST_SHARE = 0.003;
const STEPS = [0.02, 0.15, 0.5];
const LABEL = { w: 46, h: 20 };

const usedOf = ({ memory }) => (memory.gpu ?? memory.unique) + (memory.mapped ?? 0);

/** What a worker holds, in bytes: what its process takes, its models, what else there is, and what is free. */
export function memoryOf(worker, models) {
  const { memory } = worker;
  const used = usedOf(worker);
  const held = worker.models.map((key) => models.get(key)).filter(Boolean);
  const sized = held
    .map((row) => ({ kind: "model", row, name: row.key, bytes: row.memory ?? 0 }))
    .sort((a, b) => b.bytes - a.bytes || a.name.localeCompare(b.name));
  const inModels = sized.reduce((sum, { bytes: size }) => sum + size, 0);
  const base = Math.min(memory.base, used);
  const other = Math.max(0, used - base - inModels);
  const total = Math.max(memory.budget ?? 0, used, base + inModels);
  return { used, base, other, inModels, sized, total, budget: memory.budget, free: memory.budget ? Math.max(0, total - used) : 0 };
}

function tiles(memory) {
  const least = memory.inModels * LEAST_SHARE || 1;
  const shown = memory.sized.slice(0, SHOWN).map((item) => ({ ...item, size: Math.max(item.bytes, least) }));
  const rest = memory.sized.slice(SHOWN);
  if (rest.length) {
    const sum = rest.reduce((total, item) => total + item.bytes, 0);
    shown.push({ kind: "rest", name: `${count(rest.length)} more`, bytes: sum, size: Math.max(sum, least) });
  }
  return shown.sort((a, b) => b.size - a.size);
}

/** A bar of several parts with a name and a number. */
class Gauge {
  constructor(name, parts) {
    this.parts = parts.map((part) => h("span", { class: `bar-fill fill-${part}` }));
    this.value = h("span", { class: "gauge-value" });
    this.node = h("div", { class: "gauge" }, h("span", { class: "gauge-name" }, name), h("span", { class: "bar", "aria-hidden": "true" }, ...this.parts), this.value);
  }

  tell(shares, text) {
    shares.forEach((share, index) => (this.parts[index].style.width = `${Math.min(100, share * 100)}%`));
    say(this.value, text);
  }
}

class Card {
  constructor(open, act) {
    this.name = h("h3");
    this.state = h("span", { class: "state" });
    this.meta = h("p", { class: "note" });
    this.busy = new Gauge("Busy", ["busy"]);
    this.memory = new Gauge("Memory", ["base", "models", "other"]);
    this.picture = h("div", { class: "picture", role: "img" });
    this.sum = h("p", { class: "note sum" });
    this.actions = h("div", { class: "card-actions" });
    this.buttons = ["restart", "drain"].map((verb) => {
      const label = verb === "drain" ? "Drain…" : "Restart…";
      const node = h("button", { type: "button", class: "small", onclick: () => act(verb, this.worker) }, label);
      this.actions.append(node);
      return { verb, label, node };
    });
    this.node = h(
      "article",
      { class: "worker" },
      h("header", {}, this.name, this.state, this.actions, this.meta),
      h("div", { class: "gauges" }, this.busy.node, this.memory.node),
      this.picture,
      this.sum,
    );
    this.picture.addEventListener("click", (event) => {
      const key = event.target.closest("[data-model]")?.dataset.model;
      if (key) open(key);
    });
    this.width = 0;
    new ResizeObserver(([entry]) => {
      this.width = Math.round(entry.contentRect.width);
      if (this.worker) this.draw();
    }).observe(this.picture);
  }

  /** Where there is no budget, bars are as long as the one of the worker that uses the `most`. */
  tell(worker, state, most) {
    this.worker = worker;
    this.most = most;
    this.models = state.sections.models;
    const deaths = worker.deaths ? `, ${counted(worker.deaths, "death")}` : "";
    const replacing = state.head.replacing.find((one) => one.worker === worker.name);
    const about = replacing ? `being replaced: ${replacing.stage}` : `${worker.device === "cpu" ? "CPU" : worker.device}${deaths}`;
    say(this.name, worker.name);
    mark(this.state, worker.state);
    say(this.meta, `${counted(worker.models.length, "model")}, ${about}`);
    this.busy.tell([worker.busy], percent(worker.busy));
    put(this.actions, "hidden", !state.admin);
    for (const { verb, label, node } of this.buttons) {
      const able = worker.state === "READY" || (worker.state === "DRAINING" && verb === "restart");
      put(node, "aria-label", label.replace("…", ` worker ${worker.name}…`));
      put(node, "disabled", !able);
    }
    this.draw();
  }

  draw() {
    const memory = memoryOf(this.worker, this.models);
    const { total, budget, used, base, inModels, other } = memory;
    const whole = budget ? total : this.most;
    const shares = [base, Math.min(inModels, used - base), other].map((part) => (whole ? part / whole : 0));
    this.memory.tell(shares, budget ? `${bytes(used)} of ${bytes(budget)}` : bytes(used));
    const placed = treemap(tiles(memory), this.width, PICTURE_HEIGHT);
    each(this.picture, placed, ({ item }) => item.name, makeTile, tellTile);
    put(this.picture, "data-empty", memory.sized.length ? null : "No model is here.");
    const free = budget ? `, ${bytes(memory.free)} free` : "; no budget is set";
    const more = other > total * LEAST_SHARE ? `, ${bytes(other)} else` : "";
    say(this.sum, `${bytes(inModels)} in models, ${bytes(base)} for the process${more}${free}`);
    const largest = memory.sized.slice(0, 5).map((item) => `${item.name} ${bytes(item.bytes)}`);
    put(this.picture, "aria-label", `Models in the memory of ${this.worker.name}. The largest: ${largest.join(", ") || "none"}`);
  }
}

function makeTile({ item }) {
  const name = h("span", { class: "tile-name" });
  const size = h("span", { class: "tile-size" });
  return { node: h("div", { class: `tile tile-${item.kind}` }, name, size), name, size };
}

function tellTile(tile, { item, x, y, w, h: height }) {
  const { style } = tile.node;
  style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
  style.width = `${w.toFixed(1)}px`;
  style.height = `${height.toFixed(1)}px`;
  say(tile.name, w >= LABEL.w && height >= LABEL.h ? item.name : "");
  say(tile.size, w >= LABEL.w && height >= LABEL.h * 1.9 ? bytes(item.bytes) : "");
  put(tile.node, "title", `${item.name}: ${bytes(item.bytes)}${item.row ? `, ${percent(item.row.load)} of a worker` : ""}`);
  if (item.row) {
    put(tile.node, "data-model", item.row.key);
    put(tile.node, "data-heat", STEPS.filter((step) => item.row.load >= step).length);
  }
}

export function workers(node, note, state, open, act) {
  state.watch(() => {
    const rows = [...state.rows("workers")];
    const ready = rows.filter((row) => row.state === "READY").length;
    say(note, rows.length ? `${ready} of ${count(rows.length)} ready` : "none");
    const most = Math.max(0, ...rows.map(usedOf));
    each(node, rows, (row) => row.name, () => new Card(open, act), (card, row) => card.tell(row, state, most));
  });
}
