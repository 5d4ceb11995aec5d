// States as people see them: a word and a shape, so that colour is never all there is.

import { put } from "./dom.js";

const SHAPES = {
  AVAILABLE: ["good", "●", "Serving"],
  READY: ["good", "●", "Ready"],
  DONE: ["good", "●", "Done"],
  LOADING: ["busy", "◐", "Loading"],
  WARMING: ["busy", "◐", "Warming up"],
  STARTING: ["busy", "◐", "Starting"],
  PLANNED: ["busy", "◐", "Planned"],
  ROUTED: ["busy", "◐", "Routed"],
  NEW: ["idle", "◌", "New"],
  DRAINING: ["busy", "◒", "Draining"],
  UNLOADING: ["busy", "◒", "Unloading"],
  UNLOADED: ["idle", "○", "Not loaded"],
  BACKOFF: ["bad", "▲", "Restarting"],
  HALTED: ["bad", "▲", "Given up"],
  FAILED: ["bad", "▲", "Failed"],
  ABORTED: ["bad", "▲", "Aborted"],
};

export function wordOf(state) {
  return SHAPES[state]?.[2] ?? state;
}

/** Make an element show a state. */
export function mark(node, state) {
  if (node.dataset.state === state) return;
  const [kind, shape, word] = SHAPES[state] ?? ["idle", "○", state];
  node.dataset.state = state;
  put(node, "data-kind", kind);
  const sign = document.createElement("span");
  sign.setAttribute("aria-hidden", "true");
  sign.textContent = shape;
  node.replaceChildren(sign, ` ${word}`);
}
