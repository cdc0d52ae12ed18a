// Verdicts and advantages as small labels.
import { html } from "view/html.js";
import { css, QUANTITIES, signed } from "view/colours.js";
import { verdictsBelow } from "view/layout.js";

export const MARKS = {
  verified: "✓",
  wrong: "✗",
  unparsed: "?",
  timeout: "⧖",
  crash: "⚠",
  refused: "⊘",
  aborted: "⌿",
  ungraded: "·",
};
export const MEANING = {
  verified: "the answer is right",
  wrong: "the answer is wrong",
  unparsed: "no answer could be read",
  timeout: "the verifier took too long; the leaf is not trained",
  crash: "the verifier died; the leaf is not trained",
  refused: "the verifier does not judge such an answer",
  aborted: "the engine lost the branch; the leaf is not trained",
  ungraded: "no verifier has judged the leaf",
};
const UNJUDGED = ["timeout", "crash", "aborted", "ungraded"];
const ENDS = { stop: "", length: "cut", abort: "lost" };

export function rewardText(leaf) {
  return UNJUDGED.includes(leaf.verdict) || leaf.reward === null ? "" : `${+leaf.reward.toFixed(3)}`;
}

export function Verdict({ leaf, short }) {
  const end = ENDS[leaf.finish];
  return html`<span class="badge ${leaf.verdict}" title="${leaf.verdict}: ${MEANING[leaf.verdict]}">
    <b>${MARKS[leaf.verdict]}</b>${short ? "" : html` <span class="word">${leaf.verdict}</span>`}
    ${rewardText(leaf) && html` <span class="num">${rewardText(leaf)}</span>`}
    ${end && html` <em title="the rollout reached the token limit">${end}</em>`}
  </span>`;
}

export function Counts({ counts }) {
  return html`<span class="counts">${[...counts].map(
    ([verdict, n]) =>
      html`<span class="badge ${verdict}" title="${n} ${verdict}"><b>${MARKS[verdict]}</b>${" "}<span class="num"
        >${n}</span></span>`,
  )}</span>`;
}

export function Below({ forest, segment, short }) {
  const leaf = forest.leafOf.get(segment);
  if (leaf !== undefined) return html`<${Verdict} leaf=${forest.leaves[leaf]} short=${short} />`;
  return html`<${Counts} counts=${verdictsBelow(forest, segment)} />`;
}

export function Advantage({ forest, segment }) {
  if (!forest.advantage) return null;
  const value = forest.advantage[segment];
  const share = value / (forest.top_advantage || 1);
  const background = css(QUANTITIES.advantage, share) || "";
  return html`<span class="adv" title="advantage of the segment" style=${{ background }}>
    ${signed(value)}</span>`;
}
