// The line to the gateway: requests with the token, and the stream of frames, which is opened anew whenever it ends.

const KEY = "tfpool.token";
const SILENCE_MS = 12000;
const REGULAR_MS = 30000;
const LONGEST_WAIT_MS = 10000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

function headers(more) {
  const known = token.get();
  return known ? { ...more, authorization: `Bearer ${known}` } : more;
}

async function checked(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error ?? message;
  } catch {
    // what is no JSON comes from somebody between us and the gateway
  }
  throw new Refused(response.status, message);
}

export async function get(path) {
  return (await checked(await fetch(`console/${path}`, { headers: headers({}) }))).json();
}

export async function post(verb, body) {
  const sent = { method: "POST", headers: headers({ "content-type": "application/json" }), body: JSON.stringify(body) };
  return (await checked(await fetch(`console/api/${verb}`, sent))).json();
}

/** Calls `frame` with each frame, and `link` with "live" or "lost" as the line comes and goes. Throws Refused. */
export async function follow({ frame, link }) {
  let wait = 500;
  for (;;) {
    const began = Date.now();
    try {
      await read((value) => {
        wait = 500;
        link("live");
        frame(value);
      });
      if (Date.now() - began > REGULAR_MS) continue; // a stream ends now and then, so that the token is looked at again
    } catch (error) {
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) throw error;
    }
    link("lost");
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

async function read(frame) {
  const cut = new AbortController();
  const end = () => cut.abort();
  let silence = setTimeout(end, SILENCE_MS);
  try {
    const response = await checked(
      await fetch("console/events", { headers: headers({}), signal: cut.signal, cache: "no-store" }),
    );
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(end, SILENCE_MS);
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) if (event.startsWith("data: ")) show(frame, JSON.parse(event.slice(6)));
    }
  } finally {
    clearTimeout(silence);
    cut.abort();
  }
}

/** What goes wrong in showing a frame is no fault of the line. */
function show(frame, value) {
  try {
    frame(value);
  } catch (error) {
    reportError(error);
  }
}
