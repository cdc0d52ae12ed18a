// The map of a forest: one row a leaf, tokens from left to right, drawn on a canvas. It zooms along the tokens.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { html } from "view/html.js";
import { Below } from "view/badges.js";
import { css, QUANTITIES, quantityOf, sumsOf, tintOf } from "view/colours.js";
import { axisOf, endOfToken, isLeaf, layoutRows, pieceOf } from "view/layout.js";

const MIN_TOKENS = 8; // the closest zoom
const AXIS = { text: 4, tokens: 22 }; // pixels above the rows
const TREE_GAP = 10; // pixels between trees
const TEXT_WIDTH = 15; // pixels of a token from which its text is drawn, by tokens
const CHARACTER = 4.5; // pixels of a character from which text is drawn, by text

const rowHeight = (rows) => (rows <= 8 ? 32 : rows <= 20 ? 26 : rows <= 48 ? 20 : 16);

// Where the rows are: pixels from the top, by row, with a gap above each tree but the first.
function tops(forest, rows, height, above) {
  const out = [];
  let y = above;
  rows.forEach(({ segment }, n) => {
    if (n && forest.tree[segment] !== forest.tree[rows[n - 1].segment]) y += TREE_GAP;
    out.push(y);
    y += height;
  });
  out.push(y);
  return out;
}

export function Map({ forest, by, colour, folded, range, leaf, segment, token, onRange, onAxis, onPick, onFold, onTip }) {
  const canvas = useRef(), frame = useRef(), drag = useRef(null);
  const [width, setWidth] = useState(0);
  const [hover, setHover] = useState(-1);
  const theme = useTheme();
  const { rows, span } = layoutRows(forest, folded);
  const height = rowHeight(rows.length);
  const top = tops(forest, rows, height, AXIS[by]);
  const axis = axisOf(forest, by), { longest } = axis;
  const [from, to] = range ?? [0, longest];

  useLayoutEffect(() => {
    const measure = () => setWidth(frame.current.clientWidth);
    const observer = new ResizeObserver(measure);
    observer.observe(frame.current);
    measure();
    return () => observer.disconnect();
  }, []);

  const scale = width / (to - from);
  const x = (t) => (t - from) * scale;
  const box = (s) => {
    const [first, end] = span.get(s);
    return [top[first], top[end - 1] + height];
  };

  useLayoutEffect(() => {
    if (width) draw(canvas.current, { forest, axis, colour, folded, span, box, x, from, to, width, height: top.at(-1), hover, leaf, segment, token });
  });

  const zoom = (factor, at = (from + to) / 2) => {
    const length = Math.min(longest, Math.max(MIN_TOKENS, (to - from) * factor));
    move(at - (at - from) * (length / (to - from)), length);
  };
  const move = (begin, length = to - from) => {
    const low = Math.max(0, Math.min(begin, longest - length));
    onRange(length >= longest ? null : [low, low + length]);
  };

  // Passive listeners of the framework cannot keep the page from scrolling or zooming.
  useEffect(() => {
    const wheel = (event) => {
      const sideways = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
      if (!event.ctrlKey && !event.metaKey && !sideways) return;
      event.preventDefault();
      if (sideways && !event.ctrlKey && !event.metaKey) move(from + (event.deltaX || event.deltaY) / scale);
      else zoom(Math.exp(event.deltaY / 240), from + event.offsetX / scale);
    };
    const element = canvas.current;
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  });

  const hit = (event) => {
    const at = from + event.offsetX / scale;
    for (const [s] of span) {
      const [y0, y1] = box(s);
      const begin = axis.begin[s], inside = at >= begin && at < begin + axis.length[s];
      if (inside && event.offsetY >= y0 && event.offsetY < y1) return [s, axis.find(s, at - begin)];
    }
    return null;
  };
  const pointermove = (event) => {
    if (drag.current) {
      const moved = event.clientX - drag.current.x;
      if (Math.abs(moved) > 3) drag.current.moved = true;
      if (drag.current.moved) move(drag.current.from - moved / scale);
      return;
    }
    const found = hit(event);
    setHover(found ? found[0] : -1);
    onTip(found ? found[1] : -1, event);
  };
  const pointerup = (event) => {
    const was = drag.current;
    drag.current = null;
    if (was && !was.moved) {
      const found = hit(event);
      if (found) onPick(found[0], found[1]);
    }
  };
  const keydown = (event) => {
    const step = (to - from) / 8;
    const keys = { ArrowLeft: () => move(from - step), ArrowRight: () => move(from + step), "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), 0: () => onRange(null) };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  };

  return html`<section class="map" aria-label="Map of the forest">
    <div class="maptools">
      <button onClick=${() => zoom(0.5)} title="Zoom in (+, or Ctrl and the wheel)" aria-label="zoom in">+</button>
      <button onClick=${() => zoom(2)} title="Zoom out (−)" aria-label="zoom out" disabled=${!range}>−</button>
      <button onClick=${() => onRange(null)} title="Show all tokens (0)" disabled=${!range}>All</button>
      <span class="soft where">${axis.byText ? (range ? "a part of" : "all") : `tokens ${Math.round(from)} to ${Math.round(to)} of`} ${forest.longest.toLocaleString("en")}${axis.byText ? " tokens" : ""}</span>
      <span class="grow"></span>
      <label class="soft by">width by <select value=${by} aria-label="width of a token" onChange=${(e) => onAxis(e.target.value)}>
        <option value="text">text</option><option value="tokens">tokens</option></select></label>
    </div>
    <div class="mapbody">
      <div class="mapframe" ref=${frame}>
        <canvas ref=${canvas} tabindex="0" role="img" style=${{ height: `${top.at(-1)}px`, cursor: range ? "grab" : "pointer" }}
          aria-label="${forest.leaves.length} leaves in ${forest.tree.at(-1) + 1} trees; arrows move, + and − zoom"
          onPointerDown=${(e) => { drag.current = { x: e.clientX, from, moved: false }; e.target.setPointerCapture(e.pointerId); }}
          onPointerMove=${pointermove} onPointerUp=${pointerup} onKeyDown=${keydown}
          onPointerLeave=${() => { setHover(-1); onTip(-1); }}
          onDblClick=${(e) => { const found = hit(e); if (found) fit(found[0]); }}></canvas>
      </div>
      <div class="ends" style=${{ height: `${top.at(-1)}px` }}>
        ${rows.map((row, n) => html`<button key=${row.segment} class="end ${row.leaf >= 0 && row.leaf === leaf ? "on" : ""}"
          style=${{ top: `${top[n]}px`, height: `${height}px` }}
          title=${row.leaf >= 0 ? `leaf ${row.leaf}` : "unfold"}
          onClick=${() => (row.leaf >= 0 ? onPick(row.segment, -1) : onFold(row.segment))}>
          <${Below} forest=${forest} segment=${row.segment} /></button>`)}
      </div>
    </div>
  </section>`;

  function fit(s) {
    const margin = Math.max(4, axis.length[s] * 0.05);
    const length = Math.max(MIN_TOKENS, axis.length[s] + 2 * margin);
    if (length >= longest) onRange(null);
    else move(axis.begin[s] - margin, length);
  }
}

// Changes when the page turns from light to dark, so that the canvas is drawn again.
function useTheme() {
  const [theme, set] = useState(0);
  useEffect(() => {
    const tell = () => set((n) => n + 1);
    const media = matchMedia("(prefers-color-scheme: dark)");
    const observer = new MutationObserver(tell);
    media.addEventListener("change", tell);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => {
      media.removeEventListener("change", tell);
      observer.disconnect();
    };
  }, []);
  return theme;
}

function draw(canvas, view) {
  const { forest, axis, colour, folded, span, box, x, from, to, width, height, hover, leaf, segment, token } = view;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(canvas);
  const name = (variable) => style.getPropertyValue(`--${variable}`).trim();
  const ink = name("ink"), soft = name("soft"), line = name("line"), cell = name("cell"), focus = name("s0");
  const tints = Object.fromEntries(["gold", "violet", "green", "red", "blue"].map((tint) => [tint, name(tint)]));
  const fill = (quantity, share) => {
    const [tint, alpha] = tintOf(quantity, share);
    return alpha ? `rgb(${tints[tint]} / ${alpha})` : "";
  };
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  if (!axis.byText) drawTicks(g, { from, to, x, width, height, soft, line });

  const quantity = quantityOf(colour), total = sumsOf(forest, colour), scale = x(1) - x(0);
  const selected = new Set();
  for (let s = leaf >= 0 ? forest.leaves[leaf].segment : -1; s >= 0; s = forest.parent[s]) selected.add(s);
  g.font = `11.5px ${name("mono")}`;
  g.textBaseline = "middle";
  for (const [s] of span) {
    const begin = axis.begin[s], finish = begin + axis.length[s];
    const x0 = Math.max(-2, x(begin)), x1 = Math.min(width + 2, x(finish));
    const [y0, y1] = box(s), h = y1 - y0;
    if (folded.has(s) && !isLeaf(forest, s)) drawFolded(g, forest, axis, s, x, (y0 + y1) / 2, soft, width);
    if (x1 <= 0 || x0 >= width) continue;
    g.globalAlpha = leaf >= 0 && !selected.has(s) ? 0.35 : 1;
    const bar = new Path2D();
    bar.roundRect(x0 + 0.5, y0 + 1, Math.max(1, x1 - x0 - 1.5), h - 2, Math.min(4, h / 4, Math.max(0.1, (x1 - x0) / 3)));
    g.save();
    g.clip(bar);
    g.fillStyle = cell;
    g.fill(bar);
    const first = axis.find(s, Math.max(0, from - begin)), last = axis.find(s, Math.min(axis.length[s] - 1e-9, to - begin)) + 1;
    const left = (t) => x(begin + axis.at[t]), right = (t) => x(begin + endOfToken(forest, axis, t));
    if (scale * (to - from) > last - first) {
      for (let t = first; t < last; t++) {
        const paint = fill(quantity, quantity.of(forest, t));
        const wide = right(t) - left(t);
        if (!paint) continue;
        g.fillStyle = paint;
        g.fillRect(left(t), y0, wide > 5 ? wide - 1 : wide, h);
      }
    } else {
      for (let pixel = Math.max(0, Math.floor(x0)); pixel < Math.min(width, x1); pixel++) {
        const a = axis.find(s, from + pixel / scale - begin), b = Math.max(a + 1, axis.find(s, from + (pixel + 1) / scale - begin));
        const paint = fill(quantity, (total[b] - total[a]) / (b - a));
        if (!paint) continue;
        g.fillStyle = paint;
        g.fillRect(pixel, y0, 1, h);
      }
    }
    if (forest.advantage) {
      g.fillStyle = fill(QUANTITIES.advantage, forest.advantage[s] / (forest.top_advantage || 1)) || line;
      g.fillRect(x0, y0 + 1, x1 - x0, Math.min(4, h / 5));
    }
    if (scale >= (axis.byText ? CHARACTER : TEXT_WIDTH)) {
      g.fillStyle = ink;
      for (let t = first; t < last; t++) drawPiece(g, pieceOf(forest, t), left(t), (y0 + y1) / 2 + 1, right(t) - left(t));
    }
    g.restore();
    const lit = s === hover || s === segment;
    g.lineWidth = lit ? 1.5 : 1;
    g.strokeStyle = lit ? focus : line;
    g.stroke(bar);
    if (token >= forest.start[s] && token < forest.start[s + 1]) {
      g.lineWidth = 2;
      g.strokeStyle = ink;
      g.strokeRect(left(token), y0 + 1, Math.max(3, right(token) - left(token) - 1), h - 2);
    }
  }
  g.globalAlpha = 1;
}

function drawTicks(g, { from, to, x, width, height, soft, line }) {
  const rough = ((to - from) / width) * 90;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, power * ([1, 2, 5, 10].find((n) => n * power >= rough) ?? 10));
  g.font = "11px system-ui, sans-serif";
  g.textBaseline = "alphabetic";
  g.textAlign = "left";
  for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
    const at = Math.round(x(t)) + 0.5;
    g.strokeStyle = line;
    g.lineWidth = 1;
    g.beginPath();
    g.moveTo(at, 15);
    g.lineTo(at, height);
    g.stroke();
    g.fillStyle = soft;
    const label = t.toLocaleString("en");
    if (at + g.measureText(label).width + 4 < width) g.fillText(label, at + 3, 11);
  }
}

// What a folded segment hides: a dashed line as long as the longest path below.
function drawFolded(g, forest, axis, s, x, y, colour, width) {
  let end = 0;
  for (let k = s; k < forest.end[s]; k++) end = Math.max(end, axis.begin[k] + axis.length[k]);
  const a = Math.max(0, x(axis.begin[s] + axis.length[s])), b = Math.min(width, x(end));
  if (b <= a) return;
  g.strokeStyle = colour;
  g.lineWidth = 2;
  g.setLineDash([3, 4]);
  g.beginPath();
  g.moveTo(a + 3, y);
  g.lineTo(b, y);
  g.stroke();
  g.setLineDash([]);
}

function drawPiece(g, piece, left, y, width) {
  let text = piece.replace("\n", "");
  if (!text.trim()) return;
  // A little too wide is set narrower; much too wide is cut
  while (text.length > 1 && g.measureText(text).width > (width - 2) * 1.35) text = text.slice(0, -1);
  g.fillText(text, left + 1.5, y, width - 2);
}
