// The tokens of a forest as text, segment by segment, folded and unfolded. Only what is near the window is in the page.
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { html } from "view/html.js";
import { Advantage, Below } from "view/badges.js";
import { css, quantityOf } from "view/colours.js";
import { isLeaf, pathTo } from "view/layout.js";

const CHUNK = 300; // tokens that come into the page together
const LINE = 22; // pixels of a line
const NEAR = "1200px"; // distance from the window at which a chunk is made

export function Text({ forest, colour, folded, only, segment, token, onFold, onPick }) {
  const path = only >= 0 ? new Set(pathTo(forest, forest.leaves[only].segment)) : null;
  const shown = [];
  for (let s = 0; s < forest.segments; s++) {
    if (!path || path.has(s)) shown.push(s);
    if (folded.has(s)) s = forest.end[s] - 1;
  }
  return html`<section class="text" aria-label="Text of the forest">${shown.map(
    (s) => html`
    <${Segment} key=${`${forest.key}/${s}`} forest=${forest} s=${s} colour=${colour} folded=${folded.has(s)}
      lit=${s === segment} token=${forest.segmentOf[token] === s ? token : -1} flat=${path !== null}
      onFold=${onFold} onPick=${onPick} />`,
  )}
  </section>`;
}

function Segment({ forest, s, colour, folded, lit, token, flat, onFold, onPick }) {
  const leaf = isLeaf(forest, s);
  const element = useRef();
  const below = forest.end[s] - s - 1;
  const lost = forest.arity[s] - forest.children[s].length;
  const root = forest.parent[s] < 0;
  const facts = [
    `${forest.length[s]} tokens`,
    !leaf && `${forest.leafEnd[s] - forest.leafBegin[s]} leaves below`,
    lost > 0 && !leaf && `${lost} lost`,
    folded && below > 0 && `${below} segments folded`,
  ];
  useEffect(() => {
    if (lit && token < 0) element.current.scrollIntoView({ block: "nearest" });
  }, [lit]);
  return html`<div class="segment ${lit ? "lit" : ""} ${root ? "root" : ""}" ref=${element} data-segment=${s}
      style=${{ marginLeft: flat ? 0 : `calc(${forest.depth[s]} * var(--indent))` }}>
    <header onClick=${(event) => event.target.closest("button") || onPick(s, -1)}>
      <button class="fold" aria-expanded=${!folded} title=${folded ? "Unfold" : "Fold, with all that is below"}
        onClick=${() => onFold(s)}>${folded ? "▸" : "▾"}</button>
      ${root && html`<b class="treename">Tree ${forest.tree[s] + 1}</b>`}
      <${Advantage} forest=${forest} segment=${s} />
      <${Below} forest=${forest} segment=${s} />
      <span class="soft">${facts.filter(Boolean).join(" · ")}</span>
    </header>
    ${
      folded
        ? html`<div class="first">${forest.text[s].slice(0, 200).replaceAll("⏎\n", "⏎ ")}</div>`
        : html`<div class="body">${chunks(forest, s).map(
            ([a, b]) => html`
          <${Chunk} key=${a} forest=${forest} s=${s} a=${a} b=${b} colour=${colour}
            token=${token >= a && token < b ? token : -1} />`,
          )}</div>`
    }
  </div>`;
}

function chunks(forest, s) {
  const out = [];
  for (let a = forest.start[s]; a < forest.start[s + 1]; a += CHUNK)
    out.push([a, Math.min(a + CHUNK, forest.start[s + 1])]);
  return out;
}

// One run of tokens. Its elements are made by hand: a forest may have a hundred thousand tokens.
function Chunk({ forest, s, a, b, colour, token }) {
  const element = useRef();
  const text = forest.text[s].slice(forest.charStart[a], forest.charStart[b - 1] + forest.size[b - 1]);
  const lines = text.split("\n").reduce((n, line) => n + Math.max(1, Math.ceil(line.length / 110)), 0);
  const paint = () => {
    const quantity = quantityOf(colour);
    for (const span of element.current.children)
      span.style.backgroundColor = css(quantity, quantity.of(forest, span.token));
  };
  useLayoutEffect(() => {
    const fill = () => {
      const made = document.createDocumentFragment();
      for (let t = a; t < b; t++) {
        const span = document.createElement("span");
        span.token = t;
        const at = forest.charStart[t];
        span.textContent = forest.text[s].slice(at, at + forest.size[t]);
        made.append(span);
      }
      element.current.append(made);
      element.current.style.minHeight = "";
      paint();
    };
    if (token >= 0) {
      fill();
      return;
    }
    const observer = new IntersectionObserver(
      (entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        if (!element.current.childElementCount) fill();
      },
      { root: element.current.closest("main"), rootMargin: `${NEAR} 0px` },
    );
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  useLayoutEffect(paint, [colour]);
  useEffect(() => {
    if (token < 0) return;
    const span = element.current.children[token - a];
    span?.classList.add("on");
    span?.scrollIntoView({ block: "center" });
    return () => span?.classList.remove("on");
  }, [token]);
  return html`<div class="chunk" ref=${element} style=${{ minHeight: `${lines * LINE}px` }}></div>`;
}
