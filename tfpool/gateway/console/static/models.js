// The table of models. There may be thousands: of many, only the rows that can be seen are in the page.

import { Trail } from "./charts.js";
import { each, h, put, say } from "./dom.js";
import { bytes, count, counted, micros, NONE, percent, rate } from "./format.js";
import { mark, wordOf } from "./marks.js";

const AROUND = 6;
const FEW = 150;
const COVERED = 92;
const collator = new Intl.Collator("en", { numeric: true });
const byName = (a, b) => collator.compare(a.name, b.name) || b.version - a.version;
const falling = (of) => (a, b) => of(b) - of(a) || byName(a, b);
const COLUMNS = [
  { key: "name", name: "Model", order: byName },
  { key: "state", name: "State", order: (a, b) => rankOf(a) - rankOf(b) || byName(a, b) },
  { key: "workers", name: "On", order: falling((row) => row.workers.length) },
  { key: "memory", name: "Memory", number: true, order: falling((row) => row.memory ?? -1) },
  { key: "asks", name: "Requests/s", number: true, order: falling((row) => row.asks) },
  { key: "load", name: "Load", number: true, order: falling((row) => row.load) },
  { key: "wait", name: "Wait p99", number: true, order: falling((row) => row.wait?.p99 ?? -1) },
  { key: "run", name: "Run p99", number: true, order: falling((row) => row.run?.p99 ?? -1) },
];
const RANKS = ["FAILED", "LOADING", "WARMING", "DRAINING", "NEW", "AVAILABLE", "UNLOADED"];
const FILTERS = [
  ["all", "All", () => true],
  ["serving", "Serving", (row) => row.state === "AVAILABLE"],
  ["changing", "Changing", (row) => ["NEW", "LOADING", "WARMING", "DRAINING"].includes(row.state)],
  ["unloaded", "Not loaded", (row) => row.state === "UNLOADED"],
  ["failed", "Failed", (row) => row.state === "FAILED"],
];

const rankOf = (row) => RANKS.indexOf(row.state);

class Row {
  constructor(open) {
    this.title = h("span", { class: "model-name" });
    this.version = h("span", { class: "model-version" });
    this.labels = h("span", { class: "labels" });
    this.state = h("span", { class: "state" });
    this.error = h("span", { class: "row-error" });
    this.trail = new Trail();
    this.texts = Object.fromEntries(COLUMNS.map(({ key }) => [key, h("span")]));
    const cells = COLUMNS.map(({ key, name, number }) => {
      const cell = h("div", { role: "gridcell", class: `cell cell-${key}${number ? " number" : ""}`, "data-name": name });
      if (key === "name") cell.append(this.title, this.version, this.labels);
      else if (key === "state") cell.append(this.state, this.error);
      else if (key === "asks") cell.append(this.trail.node, this.texts[key]);
      else cell.append(this.texts[key]);
      return cell;
    });
    this.node = h("div", { role: "row", class: "row", onclick: () => open(this.key) }, ...cells);
  }

  tell(row, index, state) {
    this.key = row.key;
    this.node.style.transform = `translateY(calc(var(--row) * ${index}))`;
    put(this.node, "id", `model-${index}`);
    put(this.node, "aria-rowindex", index + 2);
    say(this.title, row.name);
    put(this.title, "title", row.name);
    say(this.version, row.version ? `:${row.version}` : "");
    each(this.labels, row.labels, (label) => label, makeLabel, () => undefined);
    mark(this.state, row.state);
    say(this.error, row.error ?? "");
    put(this.error, "title", row.error);
    say(this.texts.workers, row.workers.length > 3 ? counted(row.workers.length, "worker") : row.workers.join(", ") || NONE);
    say(this.texts.memory, bytes(row.memory));
    say(this.texts.asks, rate(row.asks));
    say(this.texts.load, row.load ? percent(row.load) : NONE);
    say(this.texts.wait, micros(row.wait?.p99));
    say(this.texts.run, micros(row.run?.p99));
    this.trail.draw(state.trails.get(row.key));
  }
}

function makeLabel(label) {
  return { node: h("span", { class: "label" }, label) };
}

class Grid {
  constructor(node, state, open) {
    this.state = state;
    this.open = open;
    this.rows = [];
    this.active = 0;
    this.order = COLUMNS[0];
    this.upward = false;
    this.search = "";
    this.filter = FILTERS[0];
    this.held = false;
    this.heads = COLUMNS.map((column) => this.head(column));
    this.body = h("div", { role: "rowgroup", class: "grid-body" });
    this.empty = h("p", { class: "empty", hidden: true });
    const header = h("div", { role: "row", class: "row grid-head", "aria-rowindex": 1 }, ...this.heads);
    put(node, "role", "grid");
    put(node, "tabindex", 0);
    put(node, "aria-labelledby", "models-title");
    put(node, "aria-colcount", COLUMNS.length);
    node.append(h("div", { role: "rowgroup", class: "grid-top" }, header), this.body, this.empty);
    this.node = node;
    node.addEventListener("keydown", (event) => this.key(event));
    node.addEventListener("focus", () => node.matches(":focus-visible") && this.place());
    this.body.addEventListener("pointerenter", () => (this.held = true));
    this.body.addEventListener("pointerleave", () => (this.held = false));
    for (const event of ["scroll", "resize"]) window.addEventListener(event, () => this.soon(), { passive: true });
  }

  head(column) {
    const button = h("button", { type: "button", onclick: () => this.sort(column) }, column.name);
    return h("div", { role: "columnheader", class: `cell cell-${column.key}${column.number ? " number" : ""}` }, button);
  }

  sort(column, again = true) {
    this.upward = again && this.order === column && !this.upward;
    this.order = column;
    this.choose(true);
  }

  /** Which rows there are, and in which order; that stays while a pointer is on them, unless ``now``. */
  choose(now) {
    const words = this.search.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [...this.state.rows("models")].filter((row) => this.filter[2](row) && matches(row, words));
    if (this.held && !now && found.length === this.rows.length) {
      this.rows = this.rows.map((row) => this.state.sections.models.get(row.key) ?? row);
    } else {
      const sign = this.upward ? -1 : 1;
      this.rows = found.sort((a, b) => sign * this.order.order(a, b));
    }
    this.active = Math.max(0, Math.min(this.active, this.rows.length - 1));
    COLUMNS.forEach((column, index) => {
      const falls = (column.number || column.key === "workers") !== this.upward;
      put(this.heads[index], "aria-sort", this.order === column ? (falls ? "descending" : "ascending") : null);
    });
    put(this.node, "aria-rowcount", this.rows.length + 1);
    this.body.style.height = `calc(var(--row) * ${this.rows.length})`;
    put(this.empty, "hidden", this.rows.length > 0);
    this.draw();
  }

  soon() {
    this.due ??= requestAnimationFrame(() => {
      this.due = undefined;
      this.draw();
    });
  }

  draw() {
    const height = parseFloat(getComputedStyle(this.node).getPropertyValue("--row"));
    const above = -this.body.getBoundingClientRect().top;
    const few = this.rows.length <= FEW;
    const first = few ? 0 : Math.max(0, Math.floor(above / height) - AROUND);
    const last = few ? this.rows.length : Math.min(this.rows.length, Math.ceil((above + window.innerHeight) / height) + AROUND);
    const shown = this.rows.slice(first, Math.max(first, last)).map((row, at) => [row, first + at]);
    const pick = (key) => {
      this.active = this.rows.findIndex((row) => row.key === key);
      this.open(key);
    };
    each(this.body, shown, ([row]) => row.key, () => new Row(pick), (part, [row, index]) => {
      part.tell(row, index, this.state);
      put(part.node, "data-active", index === this.active);
    });
    const visible = this.rows.length && this.active >= first && this.active < last;
    put(this.node, "aria-activedescendant", visible ? `model-${this.active}` : null);
  }

  key(event) {
    if (event.target !== this.node) return;
    const page = Math.max(1, Math.floor(window.innerHeight / this.body.firstElementChild?.offsetHeight || 1) - 3);
    const to = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      PageDown: this.active + page,
      PageUp: this.active - page,
      Home: 0,
      End: this.rows.length - 1,
    }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.active = Math.max(0, Math.min(this.rows.length - 1, to));
      this.place();
    } else if ((event.key === "Enter" || event.key === " ") && this.rows.length) {
      event.preventDefault();
      this.open(this.rows[this.active].key);
    }
  }

  /** Scroll as far as the active row needs to be seen. */
  place() {
    if (!this.rows.length) return;
    const height = parseFloat(getComputedStyle(this.node).getPropertyValue("--row"));
    const top = this.body.getBoundingClientRect().top + this.active * height;
    const over = top + 2 * height - window.innerHeight;
    const roof = COVERED + height;
    if (top < roof) window.scrollBy({ top: top - roof });
    else if (over > 0) window.scrollBy({ top: over });
    this.draw();
  }
}

function matches(row, words) {
  if (!words.length) return true;
  const text = [row.key, ...row.labels, ...row.workers, wordOf(row.state)].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

export function models({ grid: node, note, search, filter, sorting }, state, open) {
  const grid = new Grid(node, state, open);
  const counts = FILTERS.map(([key, name, fits], index) => {
    const number = h("span", { class: "number" });
    const input = h("input", { type: "radio", name: "filter", value: key, checked: index === 0 });
    input.addEventListener("change", () => {
      grid.filter = FILTERS[index];
      grid.choose(true);
    });
    filter.append(h("label", {}, input, h("span", {}, `${name} `, number)));
    return [number, fits];
  });
  COLUMNS.forEach(({ key, name }) => sorting.append(h("option", { value: key }, name)));
  sorting.addEventListener("change", () => grid.sort(COLUMNS[sorting.selectedIndex], false));
  search.addEventListener("input", () => {
    grid.search = search.value;
    grid.choose(true);
  });
  state.watch(() => {
    const rows = [...state.rows("models")];
    counts.forEach(([number, fits]) => say(number, count(rows.filter(fits).length)));
    const names = new Set(rows.map((row) => row.name)).size;
    say(note, names === rows.length ? counted(names, "model") : `${counted(names, "model")}, ${counted(rows.length, "version")}`);
    say(grid.empty, rows.length ? "No model fits." : "This pool has no models yet. Add one: tfpool add NAME=DIR");
    grid.choose(false);
  });
}
