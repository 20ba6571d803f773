// The cycles of an answer, one of which is shown: the strip, the steps, the tree.

import { drawn, svg, visible } from "./tree.js";

const MOST = 400; // cycles that are kept to be stepped through
const at = (id) => document.getElementById(id);

let cycles = [];
let shown = -1;
let follows = true;
let pending = false;
let choose = () => {};

export function watch(chosen) {
  choose = chosen;
  at("before").addEventListener("click", () => step(shown - 1));
  at("after").addEventListener("click", () => step(shown + 1));
  at("which").addEventListener("input", () => step(Number(at("which").value) - cycles[0].cycle));
  at("follow").addEventListener("click", () => {
    follows = true;
    show(cycles.length - 1, false);
  });
  at("strip").addEventListener("click", (event) => {
    const bar = event.target.closest("[data-cycle]");
    if (bar) select(cycles, Number(bar.dataset.cycle));
  });
}

// Starts with the cycles of another answer; the list grows by `add`.
export function begin(list) {
  cycles = list;
  shown = -1;
  follows = true;
  show(-1, false);
}

export function add(list, cycle) {
  if (!cycle.trace) return;
  list.push(cycle);
  if (list.length > MOST) {
    list.shift();
    if (list === cycles && !follows) shown = Math.max(shown - 1, 0);
  }
  if (list !== cycles || pending) return;
  // A server may be faster than a screen.
  pending = true;
  requestAnimationFrame(() => {
    pending = false;
    show(follows ? cycles.length - 1 : shown, false);
  });
}

// Shows the cycle of this number of an answer.
export function select(list, number) {
  const index = list.findIndex((cycle) => cycle.cycle === number);
  if (index < 0) return;
  cycles = list;
  step(index);
}

function step(index) {
  if (index < 0 || index >= cycles.length) return;
  follows = false;
  show(index, true);
}

function show(index, grows) {
  const before = cycles[shown];
  shown = index;
  const cycle = cycles[index];
  at("follow").setAttribute("aria-pressed", follows);
  at("which").disabled = !cycle;
  at("before").disabled = !cycle || index === 0;
  at("after").disabled = !cycle || index === cycles.length - 1;
  drawStrip();
  if (!cycle) {
    at("cycle-title").textContent = "Token tree";
    at("tree-frame").textContent = "Each cycle's tree is drawn here as it comes; afterwards cycles can be stepped through.";
    choose(null, null);
    return;
  }
  at("which").min = cycles[0].cycle;
  at("which").max = cycles.at(-1).cycle;
  at("which").value = cycle.cycle;
  const text = cycle.pieces.map((piece) => piece.text).join("");
  const count = cycle.tokens.length;
  at("which").setAttribute("aria-valuetext", `cycle ${cycle.cycle}, ${count} tokens: ${text}`);
  at("cycle-title").textContent = `Cycle ${cycle.cycle}: ${count} ${count === 1 ? "token" : "tokens"} “${visible(text)}”`;
  at("at").textContent = `at temperature ${Number(cycle.trace.temperature.toFixed(2))}`;
  if (before !== cycle || grows) {
    at("tree-frame").replaceChildren(drawn(cycle.trace, { grows }));
    lookAtPath();
  }
  choose(cycles, cycle.cycle);
}

// A large tree is scrolled to what was kept of it.
function lookAtPath() {
  const frame = at("tree-frame");
  frame.scrollLeft = 0;
  const [root, bonus] = [".node", ".node.bonus"].map((one) => frame.querySelector(one).getBoundingClientRect());
  const seen = frame.getBoundingClientRect();
  frame.scrollTop += (root.top + bonus.bottom) / 2 - (seen.top + seen.bottom) / 2;
  frame.scrollLeft += Math.max(0, bonus.right + 8 - seen.right);
}

function drawStrip() {
  const last = cycles.slice(Math.max(0, Math.min(shown - 30, cycles.length - 60))).slice(0, 60);
  const most = Math.max(4, ...last.map((cycle) => cycle.tokens.length));
  const picture = svg("svg", { viewBox: "0 0 600 32", preserveAspectRatio: "none" });
  last.forEach((cycle, place) => {
    const height = (cycle.tokens.length / most) * 30;
    const kind = cycle === cycles[shown] ? "cycle shown" : "cycle";
    const group = svg("g", { class: kind, "data-cycle": cycle.cycle });
    group.append(
      svg("rect", { class: "room", x: place * 10, y: 0, width: 10, height: 32 }),
      svg("rect", { class: "height", x: place * 10 + 1, y: 32 - height, width: 8, height }),
    );
    picture.append(group);
  });
  at("strip").replaceChildren(picture);
}
