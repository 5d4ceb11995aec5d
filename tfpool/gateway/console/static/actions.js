// What admins may do. Each action says what will happen, and is done when that is confirmed.

import { choice, confirm, field, notice } from "./dialogs.js";
import { h } from "./dom.js";
import { bytes, counted, duration, percent, rate } from "./format.js";
import { post } from "./stream.js";
import { memoryOf } from "./workers.js";

async function carryOut(verb, body, [doing, done]) {
  const told = notice(`${doing} …`);
  try {
    await post(verb, body);
    told.done(`${done}.`);
  } catch (error) {
    told.failed(`${doing} failed: ${error.message}`);
  }
}

const asked = (row) => (row.asks ? [`It is asked ${rate(row.asks)} times a second now.`] : []);

function labelled(row) {
  if (!row.labels.length) return [];
  const names = row.labels.join(", ");
  return [row.labels.length === 1 ? `The label ${names} leads to it.` : `The labels ${names} lead to it.`];
}

export function load(row) {
  const serving = row.state === "AVAILABLE";
  const given = !serving && row.version ? row.version : "";
  const input = h("input", { type: "text", inputmode: "numeric", value: given, size: 8, placeholder: "newest" });
  const version = () => input.value.trim();
  const what = () => (version() ? `${row.name}:${version()}` : `the newest version of ${row.name}`);
  confirm({
    title: `Load ${row.name}`,
    fields: [field("Version", input, "Leave it empty for the newest on disk.")],
    says: () => [`The pool finds room for ${what()}, loads it, and sends it requests once it serves.`],
    yes: "Load",
    act: () => {
      if (!/^([1-9]\d{0,17})?$/.test(version())) return `Got “${version()}”, expected a whole number from 1.`;
      const number = version() ? Number(version()) : null;
      if (number > Number.MAX_SAFE_INTEGER) return "That number is too large for this page: use tfpool load.";
      carryOut("load", { model: row.name, version: number }, [`Loading ${what()}`, `Loaded ${what()}`]);
      return null;
    },
  });
}

export function unload(row) {
  const where = row.workers.join(", ");
  confirm({
    title: `Unload ${row.key}?`,
    says: () => [
      `It leaves ${where} once what waits for it is answered${row.memory ? `, and frees ${bytes(row.memory)}` : ""}.`,
      "Requests for it fail from then on. Only a load brings it back.",
      ...labelled(row),
      ...asked(row),
    ],
    yes: "Unload",
    grave: true,
    act: () => {
      carryOut("unload", { model: row.name, version: row.version }, [`Unloading ${row.key}`, `Unloaded ${row.key}`]);
      return null;
    },
  });
}

export function move(row, state) {
  const others = [...state.rows("workers")].filter((one) => !row.workers.includes(one.name) && one.state === "READY");
  const texts = others.map((one) => {
    const memory = memoryOf(one, state.sections.models);
    const room = memory.budget ? `${bytes(memory.free)} free, ` : "";
    return [one.name, `${one.name}: ${room}${percent(one.busy)} busy`];
  });
  const to = choice(texts, texts[0]?.[0]);
  const from = choice(row.workers.map((name) => [name, name]), row.workers[0]);
  const fields = [field("To", to)];
  if (row.workers.length > 1) fields.unshift(field("From", from));
  confirm({
    title: `Move ${row.key}`,
    fields: others.length ? fields : [],
    says: () =>
      others.length
        ? [`${to.value} loads it first${row.memory ? ` (${bytes(row.memory)})` : ""}; then it leaves ${from.value}.`, "No request fails meanwhile."]
        : ["No other worker is ready to take it."],
    yes: "Move",
    act: () => {
      if (!others.length) return "There is nowhere to move it to.";
      const body = { model: row.name, version: row.version, to: to.value, source: from.value };
      carryOut("migrate", body, [`Moving ${row.key} to ${to.value}`, `Moved ${row.key} to ${to.value}`]);
      return null;
    },
  });
}

/** `splits` are the labels of the model with where they lead, as `{ stable: "3:90,4:10" }`. */
export function label(row, splits) {
  const name = h("input", { type: "text", value: "", autocomplete: "off", spellcheck: "false", maxlength: 512 });
  const to = h("input", { type: "text", value: String(row.version), autocomplete: "off", spellcheck: "false" });
  const says = () => {
    const chosen = name.value.trim();
    if (!chosen) return ["Requests may name a label instead of a version."];
    const before = splits[chosen] ? ` They go to ${splits[chosen]} now.` : "";
    return [`Requests for ${row.name} with the label ${chosen} will go to version ${to.value.trim()}.${before}`];
  };
  confirm({
    title: `Set a label of ${row.name}`,
    fields: [field("Label", name), field("Leads to", to, "A version, or versions and weights such as 3:90,4:10.")],
    says,
    yes: "Set label",
    act: () => {
      const chosen = name.value.trim();
      if (!chosen) return "Give the label a name.";
      const body = { model: row.name, labels: { [chosen]: to.value.trim() } };
      carryOut("label", body, [`Setting the label ${chosen}`, `The label ${chosen} leads to ${row.name}:${to.value.trim()}`]);
      return null;
    },
  });
}

export function unlabel(row, name, split) {
  confirm({
    title: `Remove the label ${name}?`,
    says: () => [`It leads to version ${split} of ${row.name}. Requests with it fail from now on.`],
    yes: "Remove label",
    grave: true,
    act: () => {
      const body = { model: row.name, labels: { [name]: null } };
      carryOut("label", body, [`Removing the label ${name}`, `Removed the label ${name} of ${row.name}`]);
      return null;
    },
  });
}

export function onWorker(verb, worker, state) {
  const models = worker.models.length;
  const others = [...state.rows("workers")].filter((one) => one.name !== worker.name && one.state === "READY").length;
  const restart = verb === "restart";
  const held = models ? `It holds ${counted(models, "model")}.` : "It holds no model.";
  const elsewhere = others ? `${counted(others, "other worker")} may take them.` : "No other worker can take them.";
  const slowest = Math.max(0, ...worker.models.map((key) => state.sections.models.get(key)?.seconds ?? 0));
  confirm({
    title: restart ? `Restart ${worker.name}?` : `Drain ${worker.name}?`,
    says: () => [
      restart
        ? "Its process is replaced. Its models move away first, where others have room, and come back; requests for the rest wait."
        : "Others load its models; then it finishes what it has, and is given nothing more until it is restarted.",
      models ? `${held} ${elsewhere}` : held,
      ...(slowest > 1 ? [`The slowest of them takes ${duration(slowest)} to load.`] : []),
    ],
    yes: restart ? "Restart" : "Drain",
    grave: true,
    act: () => {
      const words = restart ? ["Restarting", "Restarted"] : ["Draining", "Drained"];
      carryOut(verb, { worker: worker.name }, words.map((word) => `${word} ${worker.name}`));
      return null;
    },
  });
}
