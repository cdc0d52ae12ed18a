// Which rows the list shows, in which order, and what differs between the prompts.

export const STATES = ["trained", "leased", "ready", "reserved", "reissued", "dropped"];
export const SORTS = {
  step: ["step", (row) => row.step ?? Infinity],
  reward: ["mean reward", (row) => row.reward ?? -Infinity],
  length: ["longest leaf", (row) => row.facts?.longest ?? -1],
  entropy: ["mean entropy", (row) => row.facts?.entropy ?? -1],
  sharing: ["sharing", (row) => row.facts?.sharing ?? -1],
};

// A range is written "a..b"; either end may be missing.
export function parseRange(text) {
  const match = /^(-?[\d.]*)\.\.(-?[\d.]*)$/.exec(text ?? "");
  const number = (part, missing) => (part === "" || Number.isNaN(+part) ? missing : +part);
  return match ? [number(match[1], -Infinity), number(match[2], Infinity)] : null;
}

export function formatRange(low, high) {
  return low === "" && high === "" ? "" : `${low}..${high}`;
}

const within = (value, range) => value !== null && value !== undefined && value >= range[0] && value <= range[1];
const overlaps = (low, high, range) => high >= range[0] && low <= range[1];

// A function that says of a row whether the parameters of the address choose it. `found` is the set of keys with the
// searched text, null without a search.
export function chooser(params, found) {
  const verdicts = (params.verdict ?? "").split(",").filter(Boolean);
  const reward = parseRange(params.reward),
    step = parseRange(params.step),
    length = parseRange(params.length);
  return (row) => {
    const facts = row.facts;
    if (found && !found.has(row.key)) return false;
    if (params.state && row.state !== params.state) return false;
    if (params.prompt && facts?.prompt_key !== params.prompt) return false;
    if (step && !within(row.step, step)) return false;
    if (reward && !within(row.reward, reward)) return false;
    if (length && !(facts && !facts.fault && overlaps(facts.shortest, facts.longest, length))) return false;
    if (verdicts.length && !verdicts.some((verdict) => facts?.verdicts?.[verdict])) return false;
    if (params.mixed && !(facts?.rewards && facts.rewards[0] < facts.rewards[1])) return false;
    return true;
  };
}

export function sorted(rows, sort) {
  const [, value] = SORTS[(sort ?? "").replace("-", "")] ?? SORTS.step;
  const sign = sort?.startsWith("-") ? -1 : 1;
  const order = (a, b) => a.draw - b.draw || a.attempt - b.attempt;
  const compare = (a, b) => (a === b ? 0 : a < b ? -1 : 1);
  return [...rows].sort(
    (a, b) => sign * compare(value(a), value(b)) || compare(a.place ?? 0, b.place ?? 0) || order(a, b),
  );
}

// The part in which the prompts differ: a Map of key to text, without the words that all begin and end with.
export function differences(prompts) {
  const texts = [...prompts.values()];
  if (texts.length < 2) return new Map([...prompts].map(([key, text]) => [key, text.trim()]));
  const shortest = Math.min(...texts.map((text) => text.length));
  const same = (at) => texts.every((text) => at(text) === at(texts[0]));
  let head = 0,
    tail = 0;
  while (head < shortest && same((text) => text[head])) head++;
  while (tail < shortest - head && same((text) => text[text.length - 1 - tail])) tail++;
  const inWord = (text, at) => at > 0 && at < text.length && /\w\w/.test(text[at - 1] + text[at]);
  while (head > 0 && texts.some((text) => inWord(text, head))) head--;
  while (tail > 0 && texts.some((text) => inWord(text, text.length - tail))) tail--;
  return new Map([...prompts].map(([key, text]) => [key, text.slice(head, text.length - tail).trim()]));
}

// The prompts for one line: each begins with the sentence in which it differs from most of the prompts like it.
export function excerpts(prompts) {
  const texts = [...differences(prompts)].sort((a, b) => (a[1] < b[1] ? -1 : 1));
  const near = Math.max(1, Math.round(texts.length / 20));
  const shared = (a, b) => {
    let n = 0;
    while (n < a.length && a[n] === b[n]) n++;
    return n;
  };
  return new Map(
    texts.map(([key, text], n) => {
      const others = [texts[n - near], texts[n + near]].filter(Boolean);
      const head = Math.max(0, ...others.map((other) => shared(text, other[1])));
      const sentence = Math.max(...[": ", ". ", "? ", "! ", "\n"].map((end) => text.lastIndexOf(end, head - 1)));
      return [key, sentence > 0 ? `… ${text.slice(sentence + 1).trim()}` : text];
    }),
  );
}
