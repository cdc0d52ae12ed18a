// The leaves as a table: what the verifier read of each, what it said and why.
import { html } from "view/html.js";
import { Advantage, MEANING, Verdict } from "view/badges.js";

export function Leaves({ forest, leaf, onPick }) {
  const reads = forest.leaves.some((one) => one.read !== null);
  return html`<section class="leaves">
    <p class="soft">Verifier <code>${forest.verifier}</code>${
      forest.gold && html`, gold answer <code class="gold">${forest.gold}</code>`}.
      ${!reads && " It reads the whole text of a leaf."}</p>
    <div class="scroll"><table>
      <thead><tr><th class="n">Leaf</th><th>Verdict</th>${reads && html`<th>It read</th>`}<th>Why</th>
        <th class="n">Advantage</th><th class="n">Tokens</th></tr></thead>
      <tbody>${forest.leaves.map(
        (one, n) => html`
        <tr key=${n} class=${n === leaf ? "on" : ""} onClick=${() => onPick(one.segment, -1)} data-leaf=${n}>
          <td class="n"><button class="link" aria-pressed=${n === leaf}>${n}</button></td>
          <td><${Verdict} leaf=${one} /></td>
          ${reads && html`<td>${one.read ? html`<code>${one.read}</code>` : html`<span class="soft">${
            one.read === null ? "all" : "nothing"}</span>`}</td>`}
          <td class="why">${one.detail || html`<span class="soft">${MEANING[one.verdict]}</span>`}</td>
          <td class="n"><${Advantage} forest=${forest} segment=${one.segment} /></td>
          <td class="n">${forest.leafTokens[n].toLocaleString("en")}</td>
        </tr>`,
      )}</tbody>
    </table></div>
    ${forest.meta && html`<details><summary>What else the verifier got</summary><pre>${forest.meta}</pre></details>`}
  </section>`;
}
