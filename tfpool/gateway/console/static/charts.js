// Lines over the last minutes, drawn by hand: one chart for each thing that is measured.

import { each, h, put, say, svg } from "./dom.js";

const HEIGHT = 92;
const TOP = 8;
const SHORTEST = 60;
const LONGEST = 300;
const GAP = 8;

/** From 0 to the next round number: 1, 2 or 5 times a power of ten. */
export function linear(values) {
  const most = Math.max(0, ...values);
  const power = 10 ** Math.floor(Math.log10(most || 1));
  const top = most ? power * [1, 2, 5, 10].find((step) => step * power >= most * 0.999) : 1;
  return { marks: [0, top / 2, top], share: (value) => value / top };
}

/** Powers of ten: what is a hundred times as long is still in sight. */
export function logarithmic(values) {
  const logs = values.filter((value) => value > 0).map(Math.log10);
  const low = logs.length ? Math.floor(Math.min(...logs)) : 2;
  const high = Math.max(low + 2, logs.length ? Math.ceil(Math.max(...logs)) : 4);
  const marks = Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step));
  return { marks, share: (value) => (Math.log10(Math.max(value, marks[0])) - low) / (high - low) };
}

/** A chart of some series, which are `{ key, name, of }`: `of(point)` is a number, or null where there is none. */
export class Chart {
  constructor(name, series, text, scale) {
    this.series = series;
    this.text = text;
    this.scale = scale;
    this.name = name;
    this.width = 0;
    this.grid = svg("g", { class: "chart-grid" });
    this.lines = series.map(({ key }) => svg("path", { class: `line line-${key}` }));
    this.area = svg("path", { class: "area" });
    this.drawing = svg("svg", { height: HEIGHT, role: "img" }, this.grid, this.area, ...this.lines);
    this.ends = [h("span", { class: "chart-most" }), h("span", { class: "chart-least" })];
    this.since = h("span");
    const times = h("p", { class: "chart-times", "aria-hidden": "true" }, this.since, h("span", {}, "now"));
    this.node = h("div", { class: "chart" }, ...this.ends, this.drawing, times);
    new ResizeObserver(([entry]) => {
      this.width = Math.round(entry.contentRect.width);
      if (this.last) this.draw(...this.last);
    }).observe(this.node);
  }

  draw(story, now) {
    this.last = [story, now];
    if (!this.width) return;
    const span = Math.min(LONGEST, Math.max(SHORTEST, story.length ? now - story[0].at : 0));
    const values = this.series.map(({ of }) => story.map(of));
    const { marks, share } = this.scale(values.flat().filter((value) => value !== null));
    const x = (at) => this.width - ((now - at) / span) * this.width;
    const y = (value) => HEIGHT - 1 - share(value) * (HEIGHT - TOP - 1);
    put(this.drawing, "viewBox", `0 0 ${this.width} ${HEIGHT}`);
    const levels = marks.map((value) => Math.round(y(value)) + 0.5);
    each(this.grid, levels, (level) => level, () => ({ node: svg("path") }), (part, level) =>
      put(part.node, "d", `M0 ${level}H${this.width}`),
    );
    const runs = values.map((of) => pieces(story, of));
    runs.forEach((run, index) => put(this.lines[index], "d", run.map((piece) => path(piece, x, y)).join("")));
    const ground = HEIGHT - 1;
    const closed = runs[0].map(
      (piece) => `${path(piece, x, y)}L${x(piece.at(-1)[0]).toFixed(1)} ${ground}L${x(piece[0][0]).toFixed(1)} ${ground}Z`,
    );
    put(this.area, "d", closed.join(""));
    say(this.ends[0], this.text(marks.at(-1)));
    say(this.ends[1], marks[0] ? this.text(marks[0]) : "");
    say(this.since, span < 120 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`);
    put(this.drawing, "aria-label", this.words(values));
  }

  words(values) {
    const parts = this.series.map(({ name }, index) => {
      const known = values[index].filter((value) => value !== null);
      if (!known.length) return `${name}: nothing yet`;
      return `${name}: now ${this.text(known.at(-1))}, at most ${this.text(Math.max(...known))}`;
    });
    return `${this.name}. ${parts.join("; ")}`;
  }
}

/** The stretches without a gap, as [at, value]. */
function pieces(story, values) {
  const found = [];
  let piece = [];
  story.forEach(({ at }, index) => {
    const value = values[index];
    if (piece.length && (value === null || at - piece.at(-1)[0] > GAP)) {
      found.push(piece);
      piece = [];
    }
    if (value !== null) piece.push([at, value]);
  });
  return piece.length ? [...found, piece] : found;
}

function path(piece, x, y) {
  const [first, ...rest] = piece.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
  return `M${first}${rest.length ? `L${rest.join("L")}` : "h0.1"}`;
}

/** A small line without scales, for a row of a table. */
export class Trail {
  constructor() {
    this.line = svg("path", { class: "line" });
    this.node = svg("svg", { class: "trail", viewBox: "0 0 64 20", width: 64, height: 20, "aria-hidden": "true" }, this.line);
  }

  draw(values) {
    if (!values || values.length < 2) {
      put(this.line, "d", null);
      return;
    }
    const top = Math.max(...values, 1e-9);
    const step = 64 / 39;
    const from = 64 - (values.length - 1) * step;
    const points = values.map((value, index) => `${(from + index * step).toFixed(1)} ${(18.5 - (value / top) * 16).toFixed(1)}`);
    put(this.line, "d", `M${points.join("L")}`);
  }
}
