// The most visited part of a search tree, from left to right; thicker is visited more.

const TREE = { step: 150, row: 18, left: 14, top: 18, label: 170 };

function layOut(tree) {
  const children = tree.parent.map(() => []);
  const depth = tree.parent.map(() => 0), y = tree.parent.map(() => 0);
  tree.parent.forEach((parent, node) => {
    if (node === 0 || !(parent >= 0 && parent < node)) return;
    children[parent].push(node);
    depth[node] = depth[parent] + 1;
  });
  for (const nodes of children) nodes.sort((a, b) => tree.visits[b] - tree.visits[a]);
  let rows = 0;
  const place = (node) => {
    for (const child of children[node]) place(child);
    const own = children[node];
    y[node] = own.length ? y[own[0]] : TREE.top + TREE.row * rows++;  // straight along the most visited
  };
  place(0);
  return { children, depth, y, rows };
}

function bestPath(tree, children) {
  const path = new Set([0]);
  for (let node = 0; children[node].length; path.add(node)) node = children[node][0];
  return path;
}

function drawTree(tree) {
  const isTree = tree && [tree.parent, tree.visits, tree.value, tree.action].every(isList) && tree.parent.length > 1;
  $("tree").hidden = !isTree;
  if (!isTree) return;
  const { children, depth, y, rows } = layOut(tree);
  const best = bestPath(tree, children);
  const W = TREE.left + TREE.step * Math.max(...depth) + TREE.label, H = 2 * TREE.top + TREE.row * (rows - 1);
  const x = (node) => TREE.left + TREE.step * depth[node];
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, role: "img" });
  picture.setAttribute("aria-label", `Search tree: ${tree.parent.length} of ${tree.n_nodes} nodes`);
  const most = Math.max(1, tree.visits[0]);
  tree.parent.forEach((parent, node) => {
    if (node === 0) return;
    const className = best.has(node) ? "edge best" : "edge";
    const bend = x(parent) + 0.35 * TREE.step;
    picture.append(svg("path", {
      class: className, d: `M${x(parent)},${y[parent]}C${bend},${y[parent]} ${bend},${y[node]} ${x(node)},${y[node]}`,
      "stroke-width": 1 + 5 * (tree.visits[node] / most),
    }));
  });
  tree.parent.forEach((_, node) => picture.append(drawNode(tree, node, [x(node), y[node]], best.has(node), children[node].length === 0)));
  $("tree-picture").replaceChildren(picture);
  const hidden = isNumber(tree.n_nodes) ? tree.n_nodes - tree.parent.length : 0;
  $("tree-note").textContent = hidden > 0 ? `the ${tree.parent.length} most visited of ${format(tree.n_nodes, 0)} nodes` : `${tree.parent.length} nodes`;
}

function drawNode(tree, node, [x, y], isBest, isLeaf) {
  const most = Math.max(1, tree.visits[0]);
  const group = svg("g", { class: isBest ? "node best" : "node" });
  const prior = isList(tree.prior) ? `, prior ${format(tree.prior[node], "%")}` : "";
  const name = node ? String(tree.action[node] ?? "") : "now";
  group.append(
    svg("title", {}, `${name}: ${tree.visits[node]} visits, value ${short(tree.value[node])}${prior}`),
    svg("circle", { cx: x, cy: y, r: 2.5 + 4 * Math.sqrt(tree.visits[node] / most) }),
  );
  if (node) {
    const at = isLeaf ? { x: x + 9, y: y + 4 } : { x: x + 3, y: y - 7 };  // above the edges that leave it
    const label = svg("text", at, name.length > 20 ? `${name.slice(0, 19)}\u2026 ` : `${name} `);
    label.append(svg("tspan", {}, String(tree.visits[node])));
    group.append(label);
  }
  return group;
}
