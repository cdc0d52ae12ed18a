// The map of a forest: one row a leaf, tokens from left to right, on a canvas. It zooms along the tokens.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { html } from "view/html.js";
import { Below } from "view/badges.js";
import { draw } from "view/drawing.js";
import { axisOf, layoutRows } from "view/layout.js";

const MIN_TOKENS = 8; // the closest zoom
const AXIS = { text: 4, tokens: 22 }; // pixels above the rows
const TREE_GAP = 10; // pixels between trees

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

export function ForestMap({
  forest,
  by,
  colour,
  folded,
  range,
  leaf,
  segment,
  token,
  onRange,
  onAxis,
  onPick,
  onFold,
  onTip,
}) {
  const canvas = useRef(),
    frame = useRef(),
    drag = useRef(null);
  const [width, setWidth] = useState(0);
  const [hover, setHover] = useState(-1);
  const theme = useTheme();
  const { rows, span } = layoutRows(forest, folded);
  const height = rowHeight(rows.length);
  const top = tops(forest, rows, height, AXIS[by]);
  const axis = axisOf(forest, by),
    { longest } = axis;
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
    if (width)
      draw(canvas.current, {
        forest,
        axis,
        colour,
        folded,
        span,
        box,
        x,
        from,
        to,
        width,
        height: top.at(-1),
        hover,
        leaf,
        segment,
        token,
      });
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
      const begin = axis.begin[s],
        inside = at >= begin && at < begin + axis.length[s];
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
    const keys = {
      ArrowLeft: () => move(from - step),
      ArrowRight: () => move(from + step),
      "+": () => zoom(0.6),
      "=": () => zoom(0.6),
      "-": () => zoom(1 / 0.6),
      0: () => onRange(null),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    keys[event.key]();
  };

  const count = forest.longest.toLocaleString("en");
  const shownPart = axis.byText
    ? `${range ? "a part of" : "all"} ${count} tokens`
    : `tokens ${Math.round(from)} to ${Math.round(to)} of ${count}`;
  return html`<section class="map" aria-label="Map of the forest">
    <div class="maptools">
      <button onClick=${() => zoom(0.5)} title="Zoom in (+, or Ctrl and the wheel)" aria-label="zoom in">+</button>
      <button onClick=${() => zoom(2)} title="Zoom out (−)" aria-label="zoom out" disabled=${!range}>−</button>
      <button onClick=${() => onRange(null)} title="Show all tokens (0)" disabled=${!range}>All</button>
      <span class="soft where">${shownPart}</span>
      <span class="grow"></span>
      <label class="soft by">width by <select value=${by} aria-label="width of a token"
        onChange=${(e) => onAxis(e.target.value)}>
        <option value="text">text</option><option value="tokens">tokens</option></select></label>
    </div>
    <div class="mapbody">
      <div class="mapframe" ref=${frame}>
        <canvas ref=${canvas} tabindex="0" role="img"
          style=${{ height: `${top.at(-1)}px`, cursor: range ? "grab" : "pointer" }}
          aria-label="${forest.leaves.length} leaves in ${forest.tree.at(-1) + 1} trees; arrows move, + and − zoom"
          onPointerDown=${(e) => {
            drag.current = { x: e.clientX, from, moved: false };
            e.target.setPointerCapture(e.pointerId);
          }}
          onPointerMove=${pointermove} onPointerUp=${pointerup} onKeyDown=${keydown}
          onPointerLeave=${() => {
            setHover(-1);
            onTip(-1);
          }}
          onDblClick=${(e) => {
            const found = hit(e);
            if (found) fit(found[0]);
          }}></canvas>
      </div>
      <div class="ends" style=${{ height: `${top.at(-1)}px` }}>
        ${rows.map(
          (row, n) => html`<button key=${row.segment} class="end ${row.leaf >= 0 && row.leaf === leaf ? "on" : ""}"
          style=${{ top: `${top[n]}px`, height: `${height}px` }}
          title=${row.leaf >= 0 ? `leaf ${row.leaf}` : "unfold"}
          onClick=${() => (row.leaf >= 0 ? onPick(row.segment, -1) : onFold(row.segment))}>
          <${Below} forest=${forest} segment=${row.segment} /></button>`,
        )}
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
