// Draws the map of a forest on its canvas.
import { QUANTITIES, quantityOf, sumsOf, tintOf } from "view/colours.js";
import { endOfToken, isLeaf, pieceOf } from "view/layout.js";

const TEXT_WIDTH = 15; // pixels of a token from which its text is drawn, by tokens
const CHARACTER = 4.5; // pixels of a character from which text is drawn, by text

export function draw(canvas, view) {
  const { forest, axis, colour, folded, span, box, x, from, to, width, height, hover, leaf, segment, token } = view;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(canvas);
  const name = (variable) => style.getPropertyValue(`--${variable}`).trim();
  const ink = name("ink"),
    soft = name("soft"),
    line = name("line"),
    cell = name("cell"),
    focus = name("s0");
  const tints = Object.fromEntries(["gold", "violet", "green", "red", "blue"].map((tint) => [tint, name(tint)]));
  const fill = (quantity, share) => {
    const [tint, alpha] = tintOf(quantity, share);
    return alpha ? `rgb(${tints[tint]} / ${alpha})` : "";
  };
  const g = canvas.getContext("2d");
  g.setTransform(ratio, 0, 0, ratio, 0, 0);
  g.clearRect(0, 0, width, height);
  if (!axis.byText) drawTicks(g, { from, to, x, width, height, soft, line });

  const quantity = quantityOf(colour),
    total = sumsOf(forest, colour),
    scale = x(1) - x(0);
  const selected = new Set();
  for (let s = leaf >= 0 ? forest.leaves[leaf].segment : -1; s >= 0; s = forest.parent[s]) selected.add(s);
  g.font = `11.5px ${name("mono")}`;
  g.textBaseline = "middle";
  for (const [s] of span) {
    const begin = axis.begin[s],
      finish = begin + axis.length[s];
    const x0 = Math.max(-2, x(begin)),
      x1 = Math.min(width + 2, x(finish));
    const [y0, y1] = box(s),
      h = y1 - y0;
    if (folded.has(s) && !isLeaf(forest, s)) drawFolded(g, forest, axis, s, x, (y0 + y1) / 2, soft, width);
    if (x1 <= 0 || x0 >= width) continue;
    g.globalAlpha = leaf >= 0 && !selected.has(s) ? 0.35 : 1;
    const bar = new Path2D();
    bar.roundRect(
      x0 + 0.5,
      y0 + 1,
      Math.max(1, x1 - x0 - 1.5),
      h - 2,
      Math.min(4, h / 4, Math.max(0.1, (x1 - x0) / 3)),
    );
    g.save();
    g.clip(bar);
    g.fillStyle = cell;
    g.fill(bar);
    const first = axis.find(s, Math.max(0, from - begin)),
      last = axis.find(s, Math.min(axis.length[s] - 1e-9, to - begin)) + 1;
    const left = (t) => x(begin + axis.at[t]),
      right = (t) => x(begin + endOfToken(forest, axis, t));
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
        const a = axis.find(s, from + pixel / scale - begin),
          b = Math.max(a + 1, axis.find(s, from + (pixel + 1) / scale - begin));
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
      for (let t = first; t < last; t++)
        drawPiece(g, pieceOf(forest, t), left(t), (y0 + y1) / 2 + 1, right(t) - left(t));
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
  const a = Math.max(0, x(axis.begin[s] + axis.length[s])),
    b = Math.min(width, x(end));
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
