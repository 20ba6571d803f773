// One cycle's token tree as an SVG. Knows what a trace has, nothing of the conversation.

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, ACROSS, DOWN, EDGE] = [106, 41, 132, 49, 4];
const BAR = [52, 5];

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export const visible = (text) =>
  text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length)) || "∅";

const short = (text) => ([...text].length > 12 ? [...text].slice(0, 11).join("") + "…" : text);

function percent(share) {
  if (share === null) return "–";
  if (share > 0 && share < 0.001) return "<0.1%";
  return share < 0.0995 ? `${(share * 100).toFixed(1)}%` : `${Math.round(share * 100)}%`;
}

// Nodes with the bonus token among them, each with its place: leaves below each other.
function placed(trace) {
  const nodes = new Map(trace.nodes.map((node) => [node.index, { ...node, children: [] }]));
  for (const node of nodes.values()) nodes.get(node.parent)?.children.push(node);
  for (const node of nodes.values()) node.children.sort((a, b) => a.rank - b.rank);
  const above = nodes.get(trace.bonus.parent);
  const bonus = { ...trace.bonus, draft_prob: null, bonus: true, depth: above.depth + 1, children: [] };
  above.children.push(bonus);
  const all = [];
  let leaves = 0;
  const visit = (node, up) => {
    node.up = up;
    all.push(node);
    for (const child of node.children) visit(child, node);
    const [first, last] = [node.children[0], node.children.at(-1)];
    node.x = EDGE + node.depth * ACROSS;
    node.y = first ? (first.y + last.y) / 2 : EDGE + leaves++ * DOWN;
  };
  visit(trace.nodes.length ? nodes.get(trace.nodes[0].index) : above, null);
  return { all, leaves };
}

function bar(kind, share, y) {
  const name = svg("text", { class: "share", x: 64, y: y + 5.5 });
  name.textContent = percent(share);
  return [
    svg("rect", { class: "rail", x: 7, y, width: BAR[0], height: BAR[1], rx: 2 }),
    svg("rect", { class: `bar ${kind}`, x: 7, y, width: BAR[0] * (share ?? 0), height: BAR[1], rx: 2 }),
    name,
  ];
}

function box(node) {
  const kind = node.bonus ? "bonus" : node.accepted ? "accepted" : "rejected";
  const group = svg("g", { class: `node ${kind}`, transform: `translate(${node.x} ${node.y})` });
  group.style.setProperty("--depth", node.depth);
  const title = svg("title");
  title.textContent = node.up
    ? `${visible(node.text)} (${node.token}): draft ${percent(node.draft_prob)}, target ${percent(node.target_prob)}`
    : `${visible(node.text)} (${node.token}): the root, the last token of the text`;
  const token = svg("text", { class: "name", x: 7, y: 14 });
  token.textContent = short(visible(node.text));
  const mark = svg("text", { class: "mark", x: WIDTH - 15, y: 14 });
  mark.textContent = node.bonus ? "+" : node.accepted ? "✓" : "";
  group.append(title, svg("rect", { class: "box", width: WIDTH, height: HEIGHT, rx: 6 }), token, mark);
  if (!node.up) {
    const root = svg("text", { class: "share", x: 7, y: 31 });
    root.textContent = "root";
    group.append(root);
  } else {
    group.append(...(node.bonus ? [] : bar("draft", node.draft_prob, 20)), ...bar("target", node.target_prob, 31));
  }
  return group;
}

function edge(node) {
  const [x, y] = [node.up.x + WIDTH, node.up.y + HEIGHT / 2];
  const [to, at] = [node.x, node.y + HEIGHT / 2];
  const half = (x + to) / 2;
  const kind = node.bonus ? "bonus" : node.accepted ? "accepted" : "";
  const made = svg("path", { class: `edge ${kind}`, d: `M${x} ${y}C${half} ${y} ${half} ${at} ${to} ${at}` });
  made.style.setProperty("--depth", node.depth);
  return made;
}

// Returns the picture; with `grows`, its levels appear one after the other.
export function drawn(trace, { grows = false } = {}) {
  const { all, leaves } = placed(trace);
  const width = Math.max(...all.map((node) => node.x)) + WIDTH + EDGE;
  const height = leaves * DOWN - (DOWN - HEIGHT) + 2 * EDGE;
  const path = all.filter((node) => node.up && node.accepted).map((node) => visible(node.text));
  const label = `${trace.nodes.length - 1} candidates; accepted: ${path.join(" ") || "none"}; bonus: ${visible(trace.bonus.text)}`;
  const picture = svg("svg", { class: grows ? "tree grows" : "tree", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  // It shrinks to the frame as far as it stays readable, and is scrolled from there.
  picture.style.maxWidth = `${width}px`;
  picture.style.minWidth = `${width * 0.8}px`;
  const below = all.filter((node) => node.up);
  const kept = (node) => node.accepted || node.bonus;
  picture.append(...below.filter((node) => !kept(node)).map(edge), ...below.filter(kept).map(edge), ...all.map(box));
  return picture;
}
