// What the page knows of the pool: rows by section and key, and the points of the charts.

const STORY_SECONDS = 300;
const TRAIL_POINTS = 40;

export class State {
  constructor() {
    this.reset();
    this.access = "MONITOR";
    this.watchers = [];
  }

  reset() {
    this.head = null;
    this.sections = { models: new Map(), workers: new Map(), queues: new Map(), changes: new Map() };
    this.story = [];
    this.trails = new Map();
  }

  get admin() {
    return this.access === "ADMIN";
  }

  rows(section) {
    return this.sections[section].values();
  }

  /** Take in a frame of the gateway: everything, or what has changed. */
  apply(frame) {
    if (frame.whole) {
      for (const section of Object.values(this.sections)) section.clear();
      this.story = frame.story;
    }
    for (const [name, keys] of Object.entries(frame.drop)) keys.forEach((key) => this.sections[name].delete(key));
    for (const [name, rows] of Object.entries(frame.put)) {
      for (const [key, row] of Object.entries(rows)) this.sections[name].set(key, { ...row, key });
    }
    this.head = frame.head;
    this.remember(frame);
    this.tell();
  }

  remember(frame) {
    const { at } = frame.head;
    if (frame.head.trouble || at === undefined) return;
    const last = this.story.at(-1);
    if (!frame.whole && (!last || last.at < at)) this.story.push(frame.head);
    while (this.story.length && this.story[0].at < at - STORY_SECONDS) this.story.shift();
    for (const [key, row] of this.sections.models) {
      const trail = this.trails.get(key);
      if (trail) {
        trail.push(row.asks);
        if (trail.length > TRAIL_POINTS) trail.shift();
      } else if (row.asks) this.trails.set(key, [row.asks]);
    }
    for (const key of this.trails.keys()) if (!this.sections.models.has(key)) this.trails.delete(key);
  }

  watch(watcher) {
    this.watchers.push(watcher);
  }

  tell() {
    this.watchers.forEach((watcher) => watcher(this));
  }
}
