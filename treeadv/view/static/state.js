// The state of the page, kept in the hash of its address: a link shows what its sender saw.
import { useEffect, useState } from "preact/hooks";

const listeners = new Set();

export function parse(hash) {
  return Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
}

export function format(params) {
  const kept = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return new URLSearchParams(kept).toString();
}

export function current() {
  return parse(location.hash);
}

// Change some parameters; "" or null removes one. With `step` the browser's back button returns to the state before.
export function update(changes, step = false) {
  const hash = format({ ...current(), ...changes });
  const address = `${location.pathname}${location.search}${hash ? `#${hash}` : ""}`;
  history[step ? "pushState" : "replaceState"](null, "", address);
  listeners.forEach((tell) => tell());
}

export function useParams() {
  const [params, set] = useState(current);
  useEffect(() => {
    const tell = () => set(current());
    listeners.add(tell);
    addEventListener("hashchange", tell);
    addEventListener("popstate", tell);
    return () => {
      listeners.delete(tell);
      removeEventListener("hashchange", tell);
      removeEventListener("popstate", tell);
    };
  }, []);
  return params;
}

// Sets of small numbers, such as folded segments: "0-3,7" for 0, 1, 2, 3, 7.
export function parseSet(text) {
  const found = new Set();
  for (const part of (text || "").split(",")) {
    const match = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(part);
    if (match) for (let n = +match[1]; n <= +(match[2] ?? match[1]); n++) found.add(n);
  }
  return found;
}

export function formatSet(set) {
  const parts = [];
  for (const n of [...set].sort((a, b) => a - b)) {
    const last = parts[parts.length - 1];
    if (last && last[1] === n - 1) last[1] = n;
    else parts.push([n, n]);
  }
  return parts.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(",");
}
