"""Colours and style rules of the pages and drawings, light and dark.

Entropy is gold. Advantages go from red over grey to blue."""

from __future__ import annotations

COLOURS = """
:root { color-scheme: light dark; --page: #fbfaf7; --card: #ffffff; --line: #dedbd3; --ink: #1d1c19; --soft: #67645c;
  --gold: 232 168 16; --blue: 38 110 212; --red: 214 64 60; --grey: 140 138 130;
  --s0: #2a6fd6; --s1: #c76a0e; --s2: #16877a; --s3: #9a4cc0; --s4: #b23a58; --s5: #74726a; --good: #0f7a3d;
  --bad: #b3261e; --odd: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --page: #161614; --card: #1f1f1c; --line: #3b3a35; --ink: #eeece6;
  --soft: #a9a69c;
  --gold: 176 124 0; --blue: 66 126 226; --red: 214 72 70; --grey: 120 118 112;
  --s0: #6aa3f5; --s1: #eb9a4b; --s2: #3fb8a8; --s3: #c58be0; --s4: #ea7d96; --s5: #a09d94; --good: #5fd08a;
  --bad: #ff8a80; --odd: #e6b450; } }
"""

TREE = """
svg.forest { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
svg.forest text { fill: var(--ink); white-space: pre; }
svg.forest .box { fill: var(--card); stroke: var(--line); stroke-width: 1; }
svg.forest .head, svg.forest .legend text { font: 600 11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
svg.forest .legend text { font-weight: 400; fill: var(--soft); }
svg.forest .prompt .head, svg.forest .left-out { fill: var(--soft); }
svg.forest .left-out { font-style: italic; }
svg.forest .end { text-anchor: end; }
svg.forest .links path { fill: none; stroke-linecap: butt; }
svg.forest .badge path { stroke: var(--line); stroke-width: 1.5; }
svg.forest .badge rect { fill: var(--card); stroke: currentColor; stroke-width: 1.4; }
svg.forest .badge text { font-size: 11.5px; font-weight: 700; fill: currentColor; }
svg.forest.alone { background: var(--card); border-radius: 8px; }
.badge { color: var(--odd); } .badge.verified { color: var(--good); } .badge.wrong { color: var(--bad); }
  .badge.ungraded { color: var(--soft); }
.t rect { fill: rgb(var(--gold) / 0); }
.e1 rect { fill: rgb(var(--gold) / .16); } .e2 rect { fill: rgb(var(--gold) / .32); } .e3 rect {
  fill: rgb(var(--gold) / .5); }
.e4 rect { fill: rgb(var(--gold) / .7); } .e5 rect { fill: rgb(var(--gold) / .95); }
.t:hover rect { stroke: var(--ink); stroke-width: 1; } .legend .e0 rect { stroke: var(--line); }
.a { fill: rgb(var(--grey) / .18); } .l { stroke: rgb(var(--grey) / .4); }
.ap1 { fill: rgb(var(--blue) / .2); } .ap2 { fill: rgb(var(--blue) / .4); } .ap3 { fill: rgb(var(--blue) / .58); }
  .ap4 { fill: rgb(var(--blue) / .76); }
.an1 { fill: rgb(var(--red) / .2); } .an2 { fill: rgb(var(--red) / .4); } .an3 { fill: rgb(var(--red) / .58); } .an4 {
  fill: rgb(var(--red) / .76); }
.lp1 { stroke: rgb(var(--blue) / .25); } .lp2 { stroke: rgb(var(--blue) / .4); } .lp3 {
  stroke: rgb(var(--blue) / .55); } .lp4 { stroke: rgb(var(--blue) / .7); }
.ln1 { stroke: rgb(var(--red) / .25); } .ln2 { stroke: rgb(var(--red) / .4); } .ln3 { stroke: rgb(var(--red) / .55); }
  .ln4 { stroke: rgb(var(--red) / .7); }
"""

PAGE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 12px; } h3 {
  font-size: 15px; margin: 0; }
p { margin: 4px 0; } .soft { color: var(--soft); } code, pre {
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 20px 0 0;
  padding: 0; }
.tiles dt { color: var(--soft); font-size: 13px; } .tiles dd { margin: 0; font-size: 22px; font-weight: 600; }
  .tiles dd small { font-size: 13px; font-weight: 400; color: var(--soft); display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.scroll { overflow-x: auto; } .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--s0);
  outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th, td { text-align: left; padding: 5px 14px 5px 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
  td pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--soft); } pre.text { white-space: pre-wrap;
  overflow-wrap: anywhere; }
article { margin: 0 0 28px; } article .scroll { margin-top: 10px; padding-bottom: 6px; }
figcaption .soft { font-size: 13px; } svg.chart { display: block; width: 100%; height: auto;
  font: 11px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
svg.chart text { fill: var(--soft); } svg.chart .grid { stroke: var(--line); stroke-width: 1; } svg.chart .line {
  fill: none; stroke-width: 2; stroke-linejoin: round; }
svg.chart .hit { fill: transparent; } svg.chart .dot { opacity: 0; } svg.chart g:hover > .dot { opacity: 1; }
  svg.chart .last { font-weight: 600; }
.key { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 12.5px; color: var(--soft); } .key i {
  display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin: 0 6px 3px 0; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); } .s4 {
  stroke: var(--s4); } .s5 { stroke: var(--s5); }
.k0 { background: var(--s0); fill: var(--s0); } .k1 { background: var(--s1); fill: var(--s1); } .k2 {
  background: var(--s2); fill: var(--s2); }
.k3 { background: var(--s3); fill: var(--s3); } .k4 { background: var(--s4); fill: var(--s4); } .k5 {
  background: var(--s5); fill: var(--s5); }
#tip { position: fixed; z-index: 2; max-width: 420px; padding: 6px 10px; border-radius: 6px; background: var(--ink);
  color: var(--page); font-size: 13px; pointer-events: none; }
"""

# Browsers show a <title> with a delay and in small type. This script shows the text at once, beside the pointer.
SCRIPT = """
const tip = document.createElement("div"); tip.id = "tip"; tip.hidden = true; document.body.append(tip);
document.querySelectorAll("svg :not(svg) > title").forEach(t => { const g = t.parentNode;
  g.dataset.tip = t.textContent; g.setAttribute("aria-label", t.textContent); t.remove(); });
document.addEventListener("pointermove", e => {
  const g = e.target.closest("[data-tip]"); tip.hidden = !g; if (!g) return;
  tip.textContent = g.dataset.tip;
  tip.style.left = Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = (e.clientY + 18 + tip.offsetHeight > innerHeight ? e.clientY - tip.offsetHeight - 10 : e.clientY +
  18) + "px";
});
"""
