// A forest for drawing: its arrays, the structure of its trees, and which rows of the map its segments take.

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

// Segments stand in depth-first order, so subtrees and the leaves below a segment are ranges.
export function decodeForest(raw, key) {
  const S = raw.parent.length;
  const start = new Uint32Array(S + 1);
  raw.length.forEach((n, s) => (start[s + 1] = start[s] + n));
  const depth = new Uint16Array(S),
    offset = new Uint32Array(S),
    end = new Uint32Array(S);
  const children = Array.from({ length: S }, () => []);
  for (let s = 0; s < S; s++) {
    const p = raw.parent[s];
    if (p < 0) continue;
    depth[s] = depth[p] + 1;
    offset[s] = offset[p] + raw.length[p];
    children[p].push(s);
  }
  for (let s = S - 1; s >= 0; s--) end[s] = children[s].length ? end[children[s].at(-1)] : s + 1;
  const leafOf = new Map(raw.leaves.map((leaf, n) => [leaf.segment, n]));
  const leafBegin = new Uint32Array(S),
    leafEnd = new Uint32Array(S);
  let seen = 0;
  const before = new Uint32Array(S + 1);
  for (let s = 0; s < S; s++) {
    before[s] = seen;
    seen += leafOf.has(s);
  }
  before[S] = seen;
  for (let s = 0; s < S; s++) {
    leafBegin[s] = before[s];
    leafEnd[s] = before[end[s]];
  }
  const size = new Uint16Array(bytes(raw.size)),
    surprise = new Uint16Array(bytes(raw.surprise));
  const entropy = new Uint16Array(bytes(raw.entropy)),
    id = new Uint32Array(bytes(raw.id));
  const charStart = new Uint32Array(size.length),
    segmentOf = new Uint32Array(size.length);
  for (let s = 0; s < S; s++)
    for (let t = start[s], at = 0; t < start[s + 1]; at += size[t++]) {
      charStart[t] = at;
      segmentOf[t] = s;
    }
  const version = new Int32Array(size.length);
  let at = 0;
  for (const [value, count] of raw.version) version.fill(value, at, (at += count));
  const leafTokens = raw.leaves.map(({ segment }) => offset[segment] + raw.length[segment]);
  const mismatch = raw.mismatch ? new Float32Array(bytes(raw.mismatch)) : null;
  return {
    ...raw,
    key,
    segments: S,
    tokens: size.length,
    start,
    depth,
    offset,
    end,
    children,
    leafOf,
    leafBegin,
    leafEnd,
    size,
    surprise,
    entropy,
    id,
    charStart,
    segmentOf,
    version,
    leafTokens,
    mismatch,
    longest: Math.max(...leafTokens),
    top_mismatch: mismatch ? mismatch.reduce((most, x) => Math.max(most, Math.abs(x) || 0), 0) : 0,
    top_advantage: raw.advantage ? Math.max(0, ...raw.advantage.map(Math.abs)) : 0,
    oldest: version.reduce((a, b) => Math.min(a, b), Infinity),
    newest: version.reduce((a, b) => Math.max(a, b), -Infinity),
  };
}

export function pieceOf(forest, token) {
  const at = forest.charStart[token];
  return forest.text[forest.segmentOf[token]].slice(at, at + forest.size[token]);
}

export function pathTo(forest, segment) {
  const path = [];
  for (let s = segment; s >= 0; s = forest.parent[s]) path.unshift(s);
  return path;
}

export const isLeaf = (forest, segment) => forest.leafOf.has(segment);

// The rows of the map. A leaf takes one row, and so does a folded segment with all that is below it.
// Returns {rows: [{segment, leaf}], span: Map of segment to [first row, end row)}; leaf is -1 for a folded fork.
export function layoutRows(forest, folded) {
  const rows = [],
    span = new Map();
  const place = (s) => {
    const first = rows.length;
    const leaf = forest.leafOf.get(s) ?? -1;
    if (leaf >= 0 || folded.has(s)) rows.push({ segment: s, leaf });
    else forest.children[s].forEach(place);
    if (rows.length === first) rows.push({ segment: s, leaf }); // every branch below was lost
    span.set(s, [first, rows.length]);
  };
  for (let s = 0; s < forest.segments; s++) if (forest.parent[s] < 0) place(s);
  return { rows, span };
}

// Verdicts of the leaves below a segment: Map of verdict to count.
export function verdictsBelow(forest, segment) {
  const counts = new Map();
  for (let n = forest.leafBegin[segment]; n < forest.leafEnd[segment]; n++) {
    const { verdict } = forest.leaves[n];
    counts.set(verdict, (counts.get(verdict) ?? 0) + 1);
  }
  return counts;
}

const TEXT_PATH = 135; // characters of a path up to which the map gives tokens the width of their text
const axes = new WeakMap();

export const usualAxis = (forest) => (axisOf(forest, "text").longest <= TEXT_PATH ? "text" : "tokens");

// Where segments and tokens lie from left to right. By tokens, each token is 1 wide; by text, it is as wide as its
// characters.
// Returns {begin [S], length [S], at [T]: place of a token in its segment, longest: the end of the longest path,
// find(s, place): the token of segment s at a place in it}.
export function axisOf(forest, name) {
  const known = axes.get(forest) ?? axes.set(forest, {}).get(forest);
  return (known[name] ??= makeAxis(forest, name === "text"));
}

function makeAxis(forest, byText) {
  const { segments: S, start, parent } = forest;
  const begin = new Float64Array(S),
    length = new Float64Array(S),
    at = new Float64Array(forest.tokens);
  for (let s = 0; s < S; s++) {
    begin[s] = parent[s] < 0 ? 0 : begin[parent[s]] + length[parent[s]];
    for (let t = start[s]; t < start[s + 1]; t++) {
      at[t] = length[s];
      length[s] += byText ? forest.size[t] + 0.9 : 1;
    }
  }
  const find = (s, place) => {
    if (!byText) return start[s] + Math.min(forest.length[s] - 1, Math.max(0, Math.floor(place)));
    let low = start[s],
      high = start[s + 1] - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (at[middle] <= place) low = middle;
      else high = middle - 1;
    }
    return low;
  };
  const longest = forest.leaves.reduce((most, { segment: s }) => Math.max(most, begin[s] + length[s]), 0);
  return { begin, length, at, find, longest, byText };
}

export function endOfToken(forest, axis, t) {
  const s = forest.segmentOf[t];
  return t + 1 < forest.start[s + 1] ? axis.at[t + 1] : axis.length[s];
}
