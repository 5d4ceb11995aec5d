// Dialogs and notices. A dialog of the browser keeps the focus, and goes with Esc.

import { byId, h, put, say } from "./dom.js";

const SHOWN_MS = 6000;

/** Open a dialog; it is gone from the page when it is closed. */
export function openDialog(kind, title, ...content) {
  const heading = h("h2", { id: `title-${++made}` }, title);
  const dialog = h("dialog", { class: kind, "aria-labelledby": heading.id }, heading, ...content);
  dialog.addEventListener("close", () => {
    houseNotices();
    dialog.remove();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  houseNotices();
  return dialog;
}

let made = 0;

/** Notices are in the topmost dialog, if there is one: nothing else can be reached then. */
function houseNotices() {
  const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  place.append(byId("toasts"));
}

/**
 * Ask before something is done. `says()` gives what will happen, as lines, anew whenever a field changes; `act()` is
 * called when the answer is yes, and may return what is wrong with the fields.
 */
export function confirm({ title, says, fields = [], yes, grave = false, act }) {
  const lines = h("div", { class: "says" });
  const wrong = h("p", { class: "wrong", role: "alert" });
  const go = h("button", { type: "submit", class: grave ? "grave" : "main" }, yes);
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h("form", { novalidate: true }, ...fields, lines, wrong, h("div", { class: "answers" }, cancel, go));
  const refresh = () => {
    const texts = says();
    if (texts.join("\n") === lines.dataset.said) return;
    lines.dataset.said = texts.join("\n");
    lines.replaceChildren(...texts.map((text) => h("p", {}, text)));
  };
  form.addEventListener("input", () => {
    say(wrong, "");
    refresh();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const problem = act();
    if (problem) say(wrong, problem);
    else dialog.close();
  });
  refresh();
  const dialog = openDialog("confirm", title, form);
  if (!fields.length) cancel.focus();
  return dialog;
}

/** A notice of something under way: call `done` or `failed` with what became of it. */
export function notice(text) {
  const words = h("p", {}, text);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: () => node.remove() }, "✕");
  const node = h("div", { class: "toast", "data-kind": "busy" }, words, close);
  byId("toasts").append(node);
  const end = (kind, what) => {
    put(node, "data-kind", kind);
    say(words, what);
    if (kind === "good") setTimeout(() => node.remove(), SHOWN_MS);
  };
  return { done: (what) => end("good", what), failed: (what) => end("bad", what) };
}

/** A field with its label. `about` says what to put in. */
export function field(label, input, about = "") {
  const note = about ? h("span", { class: "note" }, about) : null;
  return h("label", { class: "field" }, h("span", { class: "field-name" }, label), input, note);
}

export function choice(options, chosen) {
  return h("select", {}, ...options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}

/** Ask for a token until `enter(token)` takes one; it gives what is wrong, or nothing. */
export function askToken(enter) {
  const input = h("input", { type: "password", autocomplete: "current-password", required: true, autofocus: true });
  const whose = h("input", { type: "text", autocomplete: "username", value: "tfpool", hidden: true });
  const wrong = h("p", { class: "wrong", role: "alert" });
  const go = h("button", { type: "submit", class: "main" }, "Sign in");
  const form = h("form", {}, whose, field("Token", input), wrong, h("div", { class: "answers" }, go));
  const about = h("p", { class: "note" }, "This pool shows itself to those who have a token. It is kept until this tab is closed.");
  const dialog = openDialog("confirm signin", "Sign in", about, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    put(go, "disabled", true);
    const problem = await enter(input.value.trim());
    put(go, "disabled", false);
    if (problem) {
      say(wrong, problem);
      input.select();
    } else dialog.close();
  });
}
