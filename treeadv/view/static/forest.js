// The page of one forest: facts, the prompt over the steps, the map, the leaves and the text.
import { useEffect, useMemo, useState } from "preact/hooks";
import { html } from "view/html.js";
import { css, quantityOf, QUANTITIES } from "view/colours.js";
import { axisOf, isLeaf, pieceOf, usualAxis } from "view/layout.js";
import { nameOf } from "view/list.js";
import { ForestMap } from "view/map.js";
import { formatSet, parseSet } from "view/state.js";
import { Text } from "view/text.js";
import { Leaves } from "view/verdict.js";

export function ForestPage({ data, row, params, prompts, neighbours, set, onPick, onTip }) {
  const [forest, setForest] = useState(null);
  const [error, setError] = useState("");
  useEffect(() => {
    let current = true;
    setError("");
    data.forest(row.key).then(
      (found) => current && setForest(found),
      (fault) => current && setError(fault.message),
    );
    return () => (current = false);
  }, [row.key]);
  const ready = forest && forest.key === row.key;
  return html`<main class="forest">
    <${Head} row=${row} forest=${ready ? forest : null} neighbours=${neighbours} onPick=${onPick} set=${set} />
    ${error && html`<p class="fault" role="alert">${error}</p>`}
    ${!error && !ready && html`<p class="soft loading">Reading the forest…</p>`}
    ${ready && html`<${Body} data=${data} row=${row} forest=${forest} params=${params} prompts=${prompts}
      set=${set} onPick=${onPick} onTip=${onTip} />`}
  </main>`;
}

function Head({ row, forest, neighbours, onPick, set }) {
  const [before, after] = neighbours;
  const facts = forest && [
    `${forest.leaves.length} leaves in ${forest.tree.at(-1) + 1} trees`,
    `${forest.tokens.toLocaleString("en")} tokens instead of ${forest.expanded_tokens.toLocaleString("en")}`,
    `forks by ${forest.rule}` +
      (forest.tau === null ? "" : ` above ${forest.tau.toFixed(2)} nats`) +
      (forest.predictable ? "" : " (biased)"),
    forest.oldest === forest.newest
      ? `policy version ${forest.newest}`
      : `policy versions ${forest.oldest} to ${forest.newest}`,
  ];
  return html`<header class="foresthead">
    <button class="back" onClick=${() => set({ f: "" }, true)}>‹ All forests</button>
    <h1>${nameOf(row)}</h1>
    <span class="soft id">${row.forest_id}</span>
    <span class="grow"></span>
    <span class="steps">
      <button disabled=${!before} onClick=${() => onPick(before)} title="Forest before (k)"
        aria-label="forest before">‹</button>
      <button disabled=${!after} onClick=${() => onPick(after)} title="Next forest (j)"
        aria-label="next forest">›</button>
    </span>
    ${facts && html`<p class="facts soft">${facts.map((fact) => html`<span>${fact}</span>`)}</p>`}
    ${row.note && html`<p class="note">${row.note}</p>`}
  </header>`;
}

function Body({ data, row, forest, params, prompts, set, onPick, onTip }) {
  const colour = params.colour in QUANTITIES ? params.colour : "entropy";
  const folded = useMemo(() => parseSet(params.fold), [params.fold]);
  const leaf = params.leaf in forest.leaves ? +params.leaf : -1;
  const segment = params.seg in forest.parent ? +params.seg : -1;
  const token = /^\d+$/.test(params.token) && +params.token < forest.tokens ? +params.token : -1;
  const usual = usualAxis(forest),
    by = ["text", "tokens"].includes(params.by) ? params.by : usual;
  const range = useMemo(() => parseSpan(params.x, axisOf(forest, by).longest), [params.x, by, forest]);
  const onFold = (s) => {
    const next = new Set(folded);
    next.has(s) ? next.delete(s) : next.add(s);
    set({ fold: formatSet(next) });
  };
  const pick = (s, t) => {
    const chosen = isLeaf(forest, s) ? forest.leafOf.get(s) : -1;
    const same = t < 0 && chosen >= 0 && chosen === leaf;
    set({ seg: same ? "" : s, token: t < 0 ? "" : t, leaf: same || chosen < 0 ? "" : chosen });
  };
  const tip = (t, event) => onTip(t < 0 ? "" : describe(forest, t), event);
  const hoverText = (event) => {
    const t = event.target.token;
    tip(t === undefined ? -1 : t, event);
  };
  return html`
    <${Prompt} data=${data} row=${row} forest=${forest} prompts=${prompts} set=${set} onPick=${onPick} />
    <div class="tools">
      <span class="segmented" role="radiogroup" aria-label="colour of the tokens">${Object.entries(QUANTITIES).map(
        ([name, quantity]) => {
          const missing = quantity.missing?.(forest) ?? "";
          return html`<button role="radio" aria-checked=${name === colour} disabled=${!!missing} data-colour=${name}
            title=${missing || quantity.says}
            onClick=${() => set({ colour: name === "entropy" ? "" : name })}>${quantity.label}</button>`;
        },
      )}</span>
      <${Legend} forest=${forest} colour=${colour} />
    </div>
    <${ForestMap} forest=${forest} by=${by} colour=${colour} folded=${folded} range=${range} leaf=${leaf}
      segment=${segment} token=${token}
      onAxis=${(name) => set({ by: name === usual ? "" : name, x: "" })}
      onRange=${(r) => set({ x: r ? `${r[0].toFixed(1)}..${r[1].toFixed(1)}` : "" })}
      onPick=${pick} onFold=${onFold} onTip=${tip} />
    <h2>Leaves</h2>
    <${Leaves} forest=${forest} leaf=${leaf} onPick=${pick} />
    <div class="texthead"><h2>${leaf < 0 ? "Text" : `Text of leaf ${leaf}`}</h2>
      <span class="grow"></span>
      ${leaf >= 0 && html`<button onClick=${() => set({ leaf: "", seg: "", token: "" })}>Show all branches</button>`}
      <button onClick=${() => set({ fold: formatSet(new Set(forest.parent.keys())) })}>Fold all</button>
      <button onClick=${() => set({ fold: "" })} disabled=${!folded.size}>Unfold all</button></div>
    <div onPointerMove=${hoverText} onPointerLeave=${() => onTip("")}
      onClick=${({ target }) =>
        target.token !== undefined && set({ token: target.token, seg: forest.segmentOf[target.token] })}>
      <${Text} forest=${forest} colour=${colour} folded=${folded} only=${leaf} segment=${segment} token=${token}
        onFold=${onFold} onPick=${pick} />
    </div>`;
}

function shade(reward) {
  const share = Math.round(Math.max(0, Math.min(1, reward ?? 0)) * 100);
  return `color-mix(in oklab, rgb(var(--blue)) ${share}%, var(--empty))`;
}

// The prompt, and the forests of the same prompt in the order of the steps.
function Prompt({ data, row, forest, prompts, set, onPick }) {
  const key = row.facts?.prompt_key;
  const same = [...data.rows.values()].filter((other) => key && other.facts?.prompt_key === key && other.readable);
  same.sort((a, b) => (a.step ?? Infinity) - (b.step ?? Infinity) || a.draw - b.draw);
  return html`<section class="prompt">
    <p class="question">${(key && prompts.get(key)) || forest.prompt}</p>
    <details><summary>The whole prompt, ${forest.prompt_tokens} tokens, as the model read it</summary>
      <pre>${forest.prompt}</pre></details>
    ${
      same.length > 1 &&
      html`<div class="same"><span class="soft">This prompt, ${same.length} times:</span>
      ${same.map((other) => html`<button key=${other.key} class="chip ${other.key === row.key ? "on" : ""}"
        title=${other.forest_id} onClick=${() => onPick(other.key)}><i style=${{ background: shade(other.reward) }}></i>
        ${nameOf(other)}${" "}<span class="num">${other.reward?.toFixed(2) ?? ""}</span></button>`)}
      <button class="link" onClick=${() => set({ prompt: key })}>list only these</button></div>`
    }
  </section>`;
}

function Legend({ forest, colour }) {
  const quantity = quantityOf(colour);
  if (colour === "none") return null;
  const [low, high] = quantity.ends(forest);
  const shares = quantity.signed ? [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1] : [0, 0.2, 0.4, 0.6, 0.8, 1];
  return html`<span class="legend" title=${quantity.says}><span class="num">${low}</span>
    <span class="swatches">${shares.map((share) => swatch(quantity, share))}</span><span class="num">${high}</span>
    ${forest.advantage && html`<span class="soft stripe">
      ${[1, -1].map((share) => swatch(QUANTITIES.advantage, share))} top edge of a segment: its advantage
    </span>`}</span>`;
}

const swatch = (quantity, share) => html`<i style=${{ background: css(quantity, share) }}></i>`;

function parseSpan(text, longest) {
  const match = /^([\d.]+)\.\.([\d.]+)$/.exec(text ?? "");
  if (!match || !(+match[1] < +match[2]) || +match[1] >= longest) return null;
  return [+match[1], Math.min(+match[2], longest)];
}

export function describe(forest, t) {
  const p = Math.exp(-forest.surprise[t] / 1000);
  const s = forest.segmentOf[t];
  const lines = [
    `${JSON.stringify(pieceOf(forest, t).replace("⏎\n", "\n"))}   id ${forest.id[t]}`,
    `probability ${p < 0.001 ? p.toExponential(1) : p.toFixed(3)}` +
      ` · entropy ${(forest.entropy[t] / 1000).toFixed(2)} nats`,
    `version ${forest.version[t]} · token ${forest.offset[s] + t - forest.start[s]} after the prompt`,
  ];
  if (forest.mismatch)
    lines.push(
      Number.isNaN(forest.mismatch[t])
        ? "not computed by the learner"
        : `learner − engine ${forest.mismatch[t].toFixed(4)} nats`,
    );
  return lines.join("\n");
}
