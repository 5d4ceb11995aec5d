// The page's story: who are you, follow the pool, show it.

import { onWorker } from "./actions.js";
import { askToken } from "./dialogs.js";
import { byId, put, say } from "./dom.js";
import { clock } from "./format.js";
import { models } from "./models.js";
import { moves, queues } from "./moves.js";
import { sheets } from "./sheet.js";
import { State } from "./state.js";
import { follow, get, Refused, token } from "./stream.js";
import { vitals } from "./vitals.js";
import { workers } from "./workers.js";

const ROLES = { ADMIN: "Admin", PREDICT: "Viewer", MONITOR: "Viewer" };

const state = new State();
let was = "live";

function build() {
  const open = sheets(state);
  vitals(byId("vitals"), state);
  workers(byId("workers"), byId("workers-note"), state, open, (verb, worker) => onWorker(verb, worker, state));
  models(
    { grid: byId("grid"), note: byId("models-note"), search: byId("search"), filter: byId("filter"), sorting: byId("sorting") },
    state,
    open,
  );
  moves(byId("moves"), byId("moves-note"), state);
  queues(byId("queues"), byId("queues-note"), state);
  state.watch(() => show("live"));
  say(byId("place"), location.host);
  document.title = `${location.host} – tfpool`;
}

/** How fresh what is shown is: "live", or "lost" since the last frame. */
function show(link) {
  const trouble = state.head?.trouble;
  const stale = link === "lost" || Boolean(trouble);
  const known = state.head?.at === undefined ? "" : ` What you see is of ${clock(state.head.at)}.`;
  put(document.body, "data-link", stale ? "stale" : "live");
  put(document.body, "data-known", state.head?.at !== undefined);
  say(byId("linktext"), link === "lost" ? "Not connected" : trouble ? "No answer" : "Live");
  say(byId("banner"), stale ? `${trouble ? `The pool does not answer: ${trouble}.` : "The line to the gateway is cut; trying again."}${known}` : "");
  put(byId("banner"), "hidden", !stale);
  if (was === "lost" && link === "live") enter("");
  was = link;
}

/** What is wrong with a token, or nothing. */
async function enter(given) {
  if (given) token.set(given);
  try {
    const { access, tokens } = await get("api/whoami");
    state.access = access;
    say(byId("who"), ROLES[access]);
    say(byId("door"), "Sign out");
    for (const id of ["who", "door"]) put(byId(id), "hidden", !tokens);
    return "";
  } catch (error) {
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      token.clear();
      return given ? error.message : "needed";
    }
    return error.message;
  }
}

async function begin() {
  if ((await enter("")) === "needed") signIn();
  else run();
}

function signIn() {
  say(byId("linktext"), "Not signed in");
  say(byId("door"), "Sign in");
  put(byId("door"), "hidden", false);
  askToken(async (given) => {
    const wrong = await enter(given);
    if (wrong) return wrong;
    run();
    requestAnimationFrame(() => byId("main").focus());
    return "";
  });
}

async function run() {
  try {
    await follow({ frame: (value) => state.apply(value), link: show });
  } catch {
    token.clear();
    location.reload();
  }
}

byId("door").addEventListener("click", () => {
  if (!token.get()) return signIn();
  token.clear();
  return location.reload();
});

build();
begin();
