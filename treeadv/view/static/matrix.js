// The whole run at a glance: a column a step, a cell a forest, coloured by its mean reward.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { html } from "view/html.js";

const HEIGHT = 84,
  MAX_WIDTH = 30,
  MAX_CELL = 16;

export function Matrix({ rows, chosen, selected, onPick, onTip }) {
  const canvas = useRef();
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const measure = () => setWidth(canvas.current.parentElement.clientWidth);
    const observer = new ResizeObserver(measure);
    observer.observe(canvas.current.parentElement);
    measure();
    return () => observer.disconnect();
  }, []);
  const trained = rows.filter((row) => row.step !== null);
  const last = Math.max(1, ...trained.map((row) => row.step));
  const deep = Math.max(1, ...trained.map((row) => row.place + 1));
  const rewards = trained.map((row) => row.reward ?? 0);
  const low = Math.min(0, ...rewards),
    high = Math.max(...rewards, low + 1e-9);
  const w = Math.min(MAX_WIDTH, width / last),
    h = Math.min(MAX_CELL, HEIGHT / deep);
  const place = (row) => [(row.step - 1) * w, row.place * h];
  const paint = () => {
    if (!width || !canvas.current) return;
    const ratio = devicePixelRatio || 1,
      tall = h * deep;
    canvas.current.width = Math.round(width * ratio);
    canvas.current.height = Math.round(tall * ratio);
    canvas.current.style.height = `${tall}px`;
    const style = getComputedStyle(canvas.current),
      g = canvas.current.getContext("2d");
    const name = (variable) => style.getPropertyValue(`--${variable}`).trim();
    g.scale(ratio, ratio);
    for (const row of trained) {
      const [x, y] = place(row),
        share = ((row.reward ?? 0) - low) / (high - low);
      g.globalAlpha = chosen.has(row.key) ? 1 : 0.13;
      g.fillStyle =
        row.reward === null
          ? name("line")
          : `color-mix(in oklab, rgb(${name("blue")}) ${Math.round(share * 100)}%, ${name("empty")})`;
      const gap = w > 4 ? 1 : 0;
      g.fillRect(x, y, Math.max(1, w - gap), Math.max(1, h - (h > 4 ? 1 : 0)));
      if (row.key === selected) {
        g.globalAlpha = 1;
        g.lineWidth = 2;
        g.strokeStyle = name("ink");
        g.strokeRect(x + 1, y + 1, Math.max(2, w - gap - 2), Math.max(2, h - 3));
      }
    }
  };
  useLayoutEffect(paint);
  useEffect(() => {
    const observer = new MutationObserver(paint);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => observer.disconnect();
  });
  const hit = (event) =>
    trained.find((row) => {
      const [x, y] = place(row);
      return event.offsetX >= x && event.offsetX < x + w && event.offsetY >= y && event.offsetY < y + h;
    });
  return html`<div class="matrix"><canvas ref=${canvas} role="img" aria-label="mean reward of each forest by step"
      onClick=${(e) => {
        const row = hit(e);
        if (row) onPick(row.key);
      }}
      onPointerMove=${(e) => {
        const row = hit(e);
        onTip(
          row &&
            `step ${row.step}, forest ${row.place}: mean reward ${row.reward?.toFixed(3) ?? "none"}`,
          e,
        );
      }}
      onPointerLeave=${() => onTip("")}></canvas>
    <div class="scale soft" style=${{ maxWidth: `${Math.max(280, w * last)}px` }}><span>step 1</span>
      <span class="bar"><i>${+low.toFixed(2)}</i><b class="reward"></b><i>${+high.toFixed(2)}</i> mean reward</span>
      <span>step ${last}</span></div></div>`;
}
