// All that is known of one version: a sheet beside the table, which stays up to date while it is open.

import * as actions from "./actions.js";
import { openDialog } from "./dialogs.js";
import { each, h, put, say } from "./dom.js";
import { bytes, counted, duration, errors, micros, NONE, percent, rate } from "./format.js";
import { mark } from "./marks.js";
import { get } from "./stream.js";

const STORE = { compiled: "compiled", compiling: "being compiled", waiting: "waits to be compiled", refused: "not compiled", failed: "could not be compiled" };

function facts(row, detail) {
  const forms = Object.entries(row.forms).map(([worker, form]) => `${form} on ${worker}`);
  const known = [
    ["On", row.workers.join(", ") || "no worker"],
    ["Meant to be", { serve: "loaded", "on demand": "loaded on demand", off: "not loaded" }[row.goal] ?? NONE],
    ["Memory", bytes(row.memory)],
    ["Load time", row.seconds === null || row.seconds === undefined ? NONE : duration(row.seconds)],
    ["Requests a second", rate(row.asks)],
    ["Load", row.load ? `${percent(row.load)} of a worker` : NONE],
    ["Waiting", row.wait ? `p50 ${micros(row.wait.p50)}, p99 ${micros(row.wait.p99)}` : NONE],
    ["Running", row.run ? `p50 ${micros(row.run.p50)}, p99 ${micros(row.run.p99)}` : NONE],
  ];
  if (row.errors) known.push(["Errors of the model", errors(row.errors)]);
  if (row.crashes) known.push(["Crashes", counted(row.crashes, "worker") + " ended while it ran"]);
  if (row.isolated) known.push(["Kept apart", "it has a worker to itself, for it made workers crash"]);
  if (forms.length) known.push(["Form", forms.join(", ")]);
  if (STORE[row.store]) known.push(["Store", STORE[row.store]]);
  if (detail) {
    const { batching, base_path: path } = detail;
    known.push(["Batches", `up to ${batching.max_batch_size} rows, wait up to ${batching.max_wait_ms} ms`]);
    known.push(["Files", path]);
  }
  return known;
}

const makeFact = ([name]) => {
  const value = h("dd");
  return { node: h("div", {}, h("dt", {}, name), value), value };
};

function tensor({ name, dtype, shape }) {
  const sizes = shape === null ? "any shape" : `[${shape.map((size) => (size < 0 ? "?" : size)).join(", ")}]`;
  return h("li", {}, h("code", {}, name), ` ${dtype} ${sizes}`);
}

function signature(spec, open) {
  const side = (title, tensors) => [h("h4", {}, title), h("ul", {}, ...tensors.map(tensor))];
  const alone = spec.batched ? "" : spec.reason ? `run one request at a time: ${spec.reason}` : "run one request at a time";
  return h(
    "details",
    { class: "signature", open },
    h("summary", {}, h("code", {}, spec.name), h("span", { class: "note" }, ` ${alone}`)),
    ...side("Inputs", spec.inputs),
    ...side("Outputs", spec.outputs),
  );
}

class Sheet {
  constructor(key, state) {
    this.key = key;
    this.state = state;
    this.mark = h("p", { class: "state" });
    this.error = h("pre", { class: "error", tabindex: 0 });
    this.facts = h("dl", { class: "facts" });
    this.labels = h("ul", { class: "splits", "aria-label": "Labels" });
    this.more = h("div", { class: "more" });
    this.buttons = h("div", { class: "sheet-actions" });
    const close = h("button", { type: "button", class: "quiet close", "aria-label": "Close" }, "✕");
    this.dialog = openDialog("sheet", key.replace(/:0$/, ""), close, this.mark, this.error, this.buttons, this.facts, this.labels, this.more);
    close.addEventListener("click", () => this.dialog.close());
    this.tell();
    this.fetch();
  }

  get row() {
    return this.state.sections.models.get(this.key);
  }

  /** Signatures, settings and labels are asked for when the sheet opens, and again when the labels change. */
  async fetch() {
    const row = this.row;
    if (!row) return;
    this.told = row.labels.join(" ");
    try {
      const rows = await get(`api/models/${encodeURIComponent(row.name)}`);
      this.detail = rows.find((one) => one.version === row.version) ?? rows[0];
      const specs = this.detail.signatures.map((spec, at, all) => signature(spec, all.length === 1));
      const skipped = Object.entries(this.detail.skipped_signatures).map(([name, why]) => h("p", { class: "note" }, `${name} is not served: ${why}`));
      this.more.replaceChildren(h("h3", {}, "Signatures"), ...(specs.length ? specs : [h("p", { class: "note" }, "None are known yet.")]), ...skipped);
      this.tell();
    } catch (error) {
      this.more.replaceChildren(h("p", { class: "wrong" }, error.message));
    }
  }

  tell() {
    const row = this.row;
    if (!row) {
      say(this.mark, "This version is gone.");
      this.buttons.replaceChildren();
      return;
    }
    mark(this.mark, row.state);
    say(this.error, row.error ?? "");
    put(this.error, "hidden", !row.error);
    each(this.facts, facts(row, this.detail), ([name]) => name, makeFact, (part, [, value]) => say(part.value, value));
    this.act(row);
    this.split(row);
    if (this.told !== row.labels.join(" ")) this.fetch();
  }

  act(row) {
    const splits = this.detail?.label_splits ?? {};
    const held = row.workers.length > 0;
    const able = [
      ["Load…", () => actions.load(row), true],
      ["Move…", () => actions.move(row, this.state), row.state === "AVAILABLE"],
      ["Label…", () => actions.label(row, splits), row.version > 0],
      ["Unload…", () => actions.unload(row), held],
    ];
    put(this.buttons, "hidden", !this.state.admin);
    const make = ([text]) => ({ node: h("button", { type: "button" }, text) });
    each(this.buttons, able, ([text]) => text, make, (part, [, act, may]) => {
      part.node.onclick = act;
      put(part.node, "disabled", !may);
    });
  }

  split(row) {
    const splits = Object.entries(this.detail?.label_splits ?? {});
    each(this.labels, splits, ([name]) => name, makeSplit, (part, [name, split]) => {
      say(part.name, name);
      say(part.to, ` leads to ${split}`);
      put(part.remove, "hidden", !this.state.admin);
      put(part.remove, "aria-label", `Remove the label ${name}…`);
      part.remove.onclick = () => actions.unlabel(row, name, split);
    });
  }
}

function makeSplit() {
  const name = h("span", { class: "label" });
  const to = h("span");
  const remove = h("button", { type: "button", class: "small" }, "Remove…");
  return { node: h("li", {}, name, to, remove), name, to, remove };
}

export function sheets(state) {
  let open = null;
  state.watch(() => open?.tell());
  return (key) => {
    open?.dialog.close();
    const made = new Sheet(key, state);
    open = made;
    made.dialog.addEventListener("close", () => {
      if (open === made) open = null;
    });
  };
}
