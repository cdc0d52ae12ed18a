// Where the page gets its data: JSON of the server, or scripts of a bundle. Both have the same methods.
import { decodeForest } from "view/layout.js";

const PAGE_ROWS = 2000;
const POLL = 3000; // milliseconds between two questions to the server
const KEPT = 8; // forests that stay in memory

class Rows {
  constructor() {
    this.about = null;
    this.rows = new Map();
    this.prompts = new Map();
    this.error = "";
    this.listeners = new Set();
    this.forests = new Map();
  }

  subscribe(tell) {
    this.listeners.add(tell);
    return () => this.listeners.delete(tell);
  }

  changed() {
    this.listeners.forEach((tell) => tell());
  }

  add(rows, prompts) {
    for (const row of rows) this.rows.set(row.key, row);
    for (const [key, text] of Object.entries(prompts)) this.prompts.set(key, text);
  }

  // The decoded forest of a row. Throws an Error with the reason if it cannot be read.
  async forest(key) {
    const kept = this.forests.get(key);
    if (kept) return kept;
    const raw = await this.load(key);
    if (raw.error) throw new Error(raw.error);
    const forest = decodeForest(raw, key);
    this.forests.set(key, forest);
    if (this.forests.size > KEPT) this.forests.delete(this.forests.keys().next().value);
    return forest;
  }
}

class FromServer extends Rows {
  constructor() {
    super();
    this.serial = 0;
  }

  async start() {
    await this.poll();
    setInterval(() => document.hidden || this.poll(), POLL);
  }

  async poll() {
    if (this.polling) return;
    this.polling = true;
    try {
      const about = await ask("/api/run");
      while (this.serial < about.serial) {
        const page = await ask(`/api/forests?since=${this.serial}&limit=${PAGE_ROWS}`);
        this.add(page.rows, page.prompts);
        this.serial = page.serial;
        this.about ??= about;
        this.changed();
      }
      this.about = about;
      this.error = "";
    } catch (error) {
      this.error = error instanceof TypeError ? "The server has ended; start treeadv view again." : error.message;
    } finally {
      this.polling = false;
      this.changed();
    }
  }

  load(key) {
    return ask(`/api/forest?key=${encodeURIComponent(key)}`);
  }

  // Calls found(keys, done share) as the search goes on, until `signal` ends it.
  async search(text, found, signal) {
    for (let after = 0; after !== null;) {
      const part = await ask(`/api/search?after=${after}&text=${encodeURIComponent(text)}`, signal);
      after = part.next;
      found(part.found, after === null ? 1 : after / part.of);
    }
  }
}

class FromBundle extends Rows {
  async start() {
    const { run, rows, prompts, error } = await script("data/run.js", "");
    this.error = error ?? "";
    this.about = run ?? null;
    this.add(rows ?? [], prompts ?? {});
    this.changed();
  }

  load(key) {
    const file = this.rows.get(key)?.file;
    return file ? script(file, key) : Promise.resolve({ error: "This forest is not in the bundle." });
  }

  async search(text, found, signal) {
    const rows = [...this.rows.values()].filter((row) => row.file);
    const needle = text.toLowerCase();
    for (const [n, row] of rows.entries()) {
      const raw = await this.load(row.key);
      if (signal.aborted) return;
      found(
        !raw.error && textsOf(raw).some((part) => part.toLowerCase().includes(needle)) ? [row.key] : [],
        (n + 1) / rows.length,
      );
    }
    if (!rows.length) found([], 1);
  }
}

// Prompt and leaves as text, without the marks of line ends.
export function textsOf(raw) {
  const path = (s) => (s < 0 ? "" : path(raw.parent[s]) + raw.text[s]);
  return [raw.prompt, ...raw.leaves.map((leaf) => path(leaf.segment).replaceAll("⏎\n", "\n"))];
}

async function ask(address, signal) {
  const reply = await fetch(address, { signal });
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error);
  return value;
}

// A file of a bundle calls treeadvData(key, value) for each forest in it. The last few files stay in memory.
const parts = new Map();
globalThis.treeadvData = (key, value) => parts.get(document.currentScript.getAttribute("src")).values.set(key, value);

function script(file, key) {
  if (!parts.has(file)) {
    const element = document.createElement("script");
    const part = { values: new Map() };
    part.ready = new Promise((resolve) => (element.onload = element.onerror = resolve));
    parts.set(file, part);
    if (parts.size > KEPT) parts.delete(parts.keys().next().value);
    element.src = file;
    document.head.append(element);
    part.ready.then(() => element.remove());
  }
  const part = parts.get(file);
  const missing = { error: `${file} is missing or not whole: keep the bundle's folder together.` };
  return part.ready.then(() => part.values.get(key) ?? missing);
}

export function openData(mode) {
  return mode === "bundle" ? new FromBundle() : new FromServer();
}
