// The list of all forests of the run, with its filters. Only the rows in the window are in the page.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { html } from "view/html.js";
import { Counts, MARKS } from "view/badges.js";
import { formatRange, SORTS, STATES } from "view/filters.js";
import { Matrix } from "view/matrix.js";

const ROW = 58; // pixels
const FILTERS = ["q", "verdict", "reward", "step", "length", "prompt", "state", "mixed"];
const turned = (sort) => (sort.startsWith("-") ? sort.slice(1) : `-${sort}`);

export function List({ data, params, rows, chosen, prompts, search, selected, set, onPick, onTip }) {
  const keys = useMemo(() => new Set(chosen.map((row) => row.key)), [chosen]);
  const { about } = data;
  return html`<aside class="list" aria-label="Forests">
    ${
      rows.some((row) => row.step !== null) &&
      html`<${Matrix} rows=${rows} chosen=${keys} selected=${selected} onPick=${onPick} onTip=${onTip} />`
    }
    <${Filters} params=${params} rows=${rows} set=${set} search=${search} prompts=${prompts} />
    <div class="found"><span>
      <b>${chosen.length.toLocaleString("en")}</b> of ${rows.length.toLocaleString("en")} forests${
      about.read < about.readable ? html`<span class="soft"> · ${about.read} of ${about.readable} read</span>` : ""
    }</span>
      <label class="soft">by <select value=${(params.sort ?? "step").replace("-", "")} aria-label="sort by"
        onChange=${(e) => set({ sort: e.target.value === "step" ? "" : e.target.value })}>
        ${Object.entries(SORTS).map(([name, [label]]) => html`<option value=${name}>${label}</option>`)}</select>
      <button class="turn" title="Turn the order around" aria-label="turn the order around"
        onClick=${() => set({ sort: turned(params.sort ?? "step") })}>${
          params.sort?.startsWith("-") ? "↓" : "↑"
        }</button></label></div>
    <${Window} rows=${chosen} prompts=${prompts} selected=${selected} onPick=${onPick} />
  </aside>`;
}

function Filters({ params, rows, set, search, prompts }) {
  const verdicts = new Set((params.verdict ?? "").split(",").filter(Boolean));
  const present = new Set(rows.flatMap((row) => Object.keys(row.facts?.verdicts ?? {})));
  const states = new Set(rows.map((row) => row.state));
  const toggle = (verdict) => {
    verdicts.has(verdict) ? verdicts.delete(verdict) : verdicts.add(verdict);
    set({ verdict: [...verdicts].join(",") });
  };
  const active = FILTERS.some(
    (name) => params[name],
  );
  return html`<div class="filters" role="search">
    <div class="searchline"><input type="search" placeholder="Text of a prompt or a leaf" aria-label="text"
      value=${params.q ?? ""}
      onInput=${(e) => set({ q: e.target.value })} />
      ${search.share < 1 && html`<progress max="1" value=${search.share} title="searching"></progress>`}</div>
    <div class="chips">
      ${Object.keys(MARKS)
        .filter((verdict) => present.has(verdict) || verdicts.has(verdict))
        .map(
          (verdict) => html`
        <button class="chip badge ${verdict}" aria-pressed=${verdicts.has(verdict)} onClick=${() => toggle(verdict)}
          title="forests with such a leaf">${MARKS[verdict]} ${verdict}</button>`,
        )}
      <button class="chip" aria-pressed=${!!params.mixed} onClick=${() => set({ mixed: params.mixed ? "" : "1" })}
        title="leaves with different rewards: only these forests have a gradient">mixed rewards</button>
      ${
        states.size > 1 &&
        html`<select class="chip" aria-label="state" value=${params.state ?? ""}
          onChange=${(e) => set({ state: e.target.value })}>
          <option value="">any state</option>
          ${STATES.filter((state) => states.has(state)).map((state) => html`<option>${state}</option>`)}</select>`
      }
    </div>
    <div class="ranges">
      <${Range} label="reward" name="reward" step="any" params=${params} set=${set} />
      ${rows.some((row) => row.step !== null) &&
        html`<${Range} label="step" name="step" step="1" params=${params} set=${set} />`}
      <${Range} label="leaf tokens" name="length" step="1" params=${params} set=${set} />
    </div>
    ${params.prompt && html`<div class="oneprompt"><span class="soft">only the prompt</span>${" "}
      <span class="cutline">${prompts.get(params.prompt) || params.prompt}</span></div>`}
    ${active && html`<button class="clear link"
      onClick=${() => set(Object.fromEntries(FILTERS.map((name) => [name, ""])))}>Clear the filters</button>`}
  </div>`;
}

function Range({ label, name, step, params, set }) {
  const [low, high] = (params[name] ?? "..").split("..");
  return html`<label class="range"><span class="soft">${label}</span>
    <input type="number" step=${step} placeholder="min" aria-label="smallest ${label}" value=${low}
      onInput=${(e) => set({ [name]: formatRange(e.target.value, high ?? "") })} />
    <span class="soft">–</span>
    <input type="number" step=${step} placeholder="max" aria-label="largest ${label}" value=${high}
      onInput=${(e) => set({ [name]: formatRange(low ?? "", e.target.value) })} /></label>`;
}

function Window({ rows, prompts, selected, onPick }) {
  const box = useRef();
  const [view, setView] = useState([0, 1200]);
  const measure = () => box.current && setView([box.current.scrollTop, box.current.clientHeight]);
  useLayoutEffect(() => {
    const observer = new ResizeObserver(measure);
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(() => {
    const at = rows.findIndex((row) => row.key === selected);
    if (at < 0) return;
    const top = at * ROW,
      { scrollTop, clientHeight } = box.current;
    if (top < scrollTop || top + ROW > scrollTop + clientHeight) box.current.scrollTop = top - clientHeight / 3;
  }, [selected]);
  const first = Math.max(0, Math.floor(view[0] / ROW) - 6),
    last = Math.min(rows.length, Math.ceil((view[0] + view[1]) / ROW) + 6);
  return html`<div class="rows" ref=${box} onScroll=${measure}>
    <div style=${{ height: `${rows.length * ROW}px`, position: "relative" }}>
      ${rows.slice(first, last).map(
        (row, n) => html`<button key=${row.key} class="row ${row.key === selected ? "on" : ""}" data-key=${row.key}
        style=${{ top: `${(first + n) * ROW}px`, height: `${ROW}px` }} disabled=${!row.readable}
        onClick=${() => onPick(row.key)}>
        <${Row} row=${row} prompts=${prompts} /></button>`,
      )}
    </div>
    ${!rows.length && html`<p class="empty soft">No forest is like this.</p>`}
  </div>`;
}

export function nameOf(row) {
  if (row.step !== null) return `Step ${row.step} · ${row.place}`;
  return row.state === "file"
    ? `Forest ${row.key}`
    : `Draw ${row.draw}${row.attempt ? ` · try ${row.attempt + 1}` : ""}`;
}

function Row({ row, prompts }) {
  const facts = row.facts;
  const length = facts && !facts.fault ? `≤ ${facts.longest.toLocaleString("en")} tokens` : "";
  const said = facts?.fault || row.note || (facts && prompts.get(facts.prompt_key));
  return html`<span class="line"><b>${nameOf(row)}</b>
      ${row.state !== "trained" && row.state !== "file" && html`<span class="state ${row.state}">${row.state}</span>`}
      <span class="grow"></span>
      ${facts?.verdicts && html`<${Counts} counts=${Object.entries(facts.verdicts)} />`}
      <span class="mean num" title="mean reward">${row.reward === null ? "" : row.reward.toFixed(2)}</span></span>
    <span class="line soft"><span class="cutline">${said || (row.readable ? "…" : "")}</span>
      <span class="num">${length}</span></span>`;
}
