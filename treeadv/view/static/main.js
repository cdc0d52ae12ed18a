// The page: the list of forests beside one forest. All that a link needs is in the hash.
import { render } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "view/html.js";
import { openData } from "view/data.js";
import { chooser, differences, excerpts, sorted } from "view/filters.js";
import { ForestPage } from "view/forest.js";
import { List } from "view/list.js";
import { update, useParams } from "view/state.js";

const SEARCH_PAUSE = 250; // milliseconds after the last key
const OF_A_FOREST = { leaf: "", seg: "", token: "", fold: "", x: "", by: "" };

function App({ data }) {
  const params = useParams();
  const revision = useRevision(data);
  const search = useSearch(data, params.q, revision);
  const [tip, setTip] = useState(null);
  const rows = useMemo(() => [...data.rows.values()], [revision]);
  const prompts = useMemo(() => differences(data.prompts), [data.prompts.size]);
  const lines = useMemo(() => excerpts(data.prompts), [data.prompts.size]);
  const chosen = useMemo(
    () => sorted(rows.filter(chooser(params, search.found)), params.sort),
    [
      rows,
      search.found,
      params.q,
      params.verdict,
      params.reward,
      params.step,
      params.length,
      params.prompt,
      params.state,
      params.mixed,
      params.sort,
    ],
  );
  const row = data.rows.get(params.f);
  const readable = useMemo(() => chosen.filter((one) => one.readable), [chosen]);
  const at = readable.findIndex((one) => one.key === params.f);
  const neighbours = [readable[at - 1]?.key, at < 0 ? readable[0]?.key : readable[at + 1]?.key];
  const pick = (key) => key && update({ ...OF_A_FOREST, f: key }, true);
  const onTip = (text, event) => setTip(text ? { text, x: event.clientX, y: event.clientY } : null);
  useKeys({ j: () => pick(neighbours[1]), k: () => pick(neighbours[0]) });
  useEffect(() => {
    document.querySelector("main.forest")?.scrollTo?.(0, 0);
  }, [params.f]);
  if (!data.about) return html`<p class="empty">${data.error || "Reading the run…"}</p>`;
  return html`<div class="app ${row ? "reading" : ""}">
    <${Bar} about=${data.about} error=${data.error} />
    <${List} data=${data} params=${params} rows=${rows} chosen=${chosen} prompts=${lines} search=${search}
      selected=${params.f}
      set=${update} onPick=${pick} onTip=${onTip} />
    ${
      row
        ? html`<${ForestPage} data=${data} row=${row} params=${params} prompts=${prompts} neighbours=${neighbours}
            set=${update} onPick=${pick} onTip=${onTip} />`
        : html`<main class="forest"><div class="empty soft">${nothing(params.f, rows)}</div></main>`
    }
    <${Tip} tip=${tip} />
  </div>`;
}

function nothing(key, rows) {
  if (key) return `The run has no forest ${key}.`;
  return rows.length ? "Choose a forest: click a cell or a row, or press j." : "The run has drawn no forest yet.";
}

function Bar({ about, error }) {
  const facts = [about.model, about.task, about.preset && `preset ${about.preset}`].filter(Boolean);
  const state = about.state === "bundle" ? about.was : about.state;
  return html`<header class="bar">
    <span class="brand"><${Mark} /> ${about.name}</span>
    ${state !== "file" && html`<span class="state ${state}">
      ${state}${about.steps ? ` · step ${about.step} of ${about.steps}` : ""}</span>`}
    <span class="soft what">${facts.join(" · ")}</span>
    <span class="grow"></span>
    ${(about.fault || error) && html`<span class="fault" role="alert">${error || about.fault}</span>`}
    <button class="theme" onClick=${turnTheme} title="Light or dark" aria-label="light or dark">◐</button>
  </header>`;
}

const Mark =
  () => html`<svg viewBox="0 0 32 24" width="26" height="20" aria-hidden="true">
    <g fill="none" stroke-width="3" stroke-linecap="round">
      <path d="M3 12h7" stroke="rgb(var(--gold))" />
      <path d="M10 12c6 0 4-8 11-8h8M10 12h19" stroke="rgb(var(--blue))" />
      <path d="M10 12c6 0 4 8 11 8h8" stroke="rgb(var(--red))" />
    </g></svg>`;

function Tip({ tip }) {
  const element = useRef();
  useEffect(() => {
    if (!tip) return;
    const { offsetWidth: w, offsetHeight: h, style } = element.current;
    style.left = `${Math.max(4, Math.min(tip.x + 14, innerWidth - w - 8))}px`;
    style.top = `${tip.y + 20 + h > innerHeight ? tip.y - h - 12 : tip.y + 20}px`;
  });
  return html`<div id="tip" ref=${element} hidden=${!tip}>${tip?.text}</div>`;
}

function useRevision(data) {
  const [revision, set] = useState(0);
  useEffect(() => {
    const next = () => set((n) => n + 1);
    next(); // data may have arrived before this effect
    return data.subscribe(next);
  }, [data]);
  return revision;
}

// Keys of the forests with the text, found bit by bit; null without a text.
function useSearch(data, text, revision) {
  const [state, set] = useState({ found: null, share: 1 });
  const readable = data.about?.readable;
  useEffect(() => {
    if (!text) {
      set({ found: null, share: 1 });
      return;
    }
    const control = new AbortController();
    const found = new Set();
    const timer = setTimeout(() => {
      set({ found: new Set(), share: 0 });
      data
        .search(
          text,
          (keys, share) => {
            keys.forEach((key) => found.add(key));
            if (!control.signal.aborted) set({ found: new Set(found), share });
          },
          control.signal,
        )
        .catch((error) => {
          if (error.name !== "AbortError") set({ found, share: 1 });
        });
    }, SEARCH_PAUSE);
    return () => {
      clearTimeout(timer);
      control.abort();
    };
  }, [text, readable]);
  return state;
}

function useKeys(keys) {
  useEffect(() => {
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName))
        return;
      keys[event.key]?.();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
}

const stored = (name) => {
  try {
    return localStorage.getItem(name);
  } catch {
    return null; // a page from a file may have no storage
  }
};

function turnTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("theme", root.dataset.theme);
  } catch {
    // not kept
  }
}

if (stored("theme")) document.documentElement.dataset.theme = stored("theme");
const data = openData(document.body.dataset.mode);
render(html`<${App} data=${data} />`, document.getElementById("app"));
data.start();
