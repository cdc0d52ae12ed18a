// What the colour behind a token may show, as shares of a scale: 0 to 1, or -1 to 1 around zero.

const clip = (x, low, high) => Math.max(low, Math.min(high, x));
const small = (x) => `${+x.toPrecision(2)}`;
const number = (x) => (Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(2)).replace("-", "−");

export const QUANTITIES = {
  entropy: {
    label: "Entropy",
    of: (f, t) => clip(f.entropy[t] / 1000 / (f.top_entropy || 1), 0, 1),
    ends: (f) => ["0", `${number(f.top_entropy)} nats`],
    tint: "gold",
    says: "Entropy of the policy where the token was drawn. A fork follows where it is high.",
  },
  probability: {
    label: "Probability",
    of: (f, t) => 1 - Math.exp(-f.surprise[t] / 1000),
    ends: () => ["p = 1", "p = 0"],
    tint: "violet",
    says: "Probability of the token under the policy that drew it. Dark tokens were unlikely.",
  },
  advantage: {
    label: "Advantage",
    signed: true,
    of: (f, t) => (f.advantage?.[f.segmentOf[t]] ?? 0) / (f.top_advantage || 1),
    ends: (f) => [`−${number(f.top_advantage)}`, `+${number(f.top_advantage)}`],
    missing: (f) => (f.advantage ? "" : "The forest is not graded."),
    says: "Advantage of the token's segment, by the preset of the run.",
  },
  version: {
    label: "Version",
    of: (f, t) => (f.newest > f.oldest ? (f.version[t] - f.oldest) / (f.newest - f.oldest) : 0.5),
    ends: (f) => [`${f.oldest}`, `${f.newest}`],
    tint: "green",
    says: "Version of the policy that drew the token: the number of optimizer updates behind its weights.",
  },
  mismatch: {
    label: "Mismatch",
    signed: true,
    of: (f, t) => clip((f.mismatch?.[t] || 0) / (f.top_mismatch || 1), -1, 1), // NaN where the learner did not compute
    ends: (f) => [`−${small(f.top_mismatch)}`, `+${small(f.top_mismatch)} nats`],
    missing: (f) =>
      f.mismatch ? "" : "The learner's probabilities of this forest are not kept: learner.keep_log_probs keeps them.",
    says: "Log-probability of the learner when the batch arrived, minus that of the engine.",
  },
  none: { label: "None", of: () => 0, ends: () => ["", ""], says: "" },
};

export const quantityOf = (name) => QUANTITIES[name] ?? QUANTITIES.entropy;

// Opacity of a tint at the end of its scale: text on it stays legible.
const OPAQUE = { gold: 0.9, violet: 0.62, green: 0.72, red: 0.72, blue: 0.72 };

// The tint and the opacity of a share; opacities in steps, so that equal tokens look equal.
export function tintOf(quantity, share) {
  const tint = quantity.signed ? (share < 0 ? "red" : "blue") : (quantity.tint ?? "gold");
  return [tint, (Math.round(Math.abs(share) * 12) / 12) * OPAQUE[tint]];
}

export function css(quantity, share) {
  const [tint, alpha] = tintOf(quantity, share);
  return alpha ? `rgb(var(--${tint}) / ${alpha.toFixed(3)})` : "transparent";
}

// Sums up to each token, from which the mean over a range of tokens follows: Float64Array of T + 1.
const sums = new WeakMap();
export function sumsOf(forest, name) {
  const quantity = quantityOf(name);
  const known = sums.get(forest) ?? sums.set(forest, {}).get(forest);
  if (!known[name]) {
    const total = (known[name] = new Float64Array(forest.tokens + 1));
    for (let t = 0; t < forest.tokens; t++) total[t + 1] = total[t] + quantity.of(forest, t);
  }
  return known[name];
}

export const signed = (x) => (Math.abs(x) < 0.005 ? "0" : `${x > 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`);
