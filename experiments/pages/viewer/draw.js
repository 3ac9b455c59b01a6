// The canvas: what is in view of the tree at its present iteration.

const MARGIN = 34;
const NEAR = 14; // pixels within which the pointer is at a node

class Drawing {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scale = 1;
    this.left = 0; // of the plane, in pixels of the window
    this.top = 0;
    this.drawn = 0;
    this.isFitted = true;
    this.readColours();
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["panel", "text", "soft", "faint", "line", "edge", "accent", "correct", "wrong", "incomplete", "negative", "neutral", "positive"];
    this.colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.mono = style.getPropertyValue("--mono");
    const channels = (name) => [1, 3, 5].map((at) => parseInt(this.colours[name].slice(at, at + 2), 16));
    this.ends = { negative: channels("negative"), neutral: channels("neutral"), positive: channels("positive") };
    this.ramp = undefined;
  }

  // q by colour; tanh, since many backups add up.
  colourOf(value) {
    this.ramp ??= Array.from({ length: 65 }, (_, i) => {
      const t = i / 32 - 1;
      const [from, to, share] = [this.ends.neutral, t < 0 ? this.ends.negative : this.ends.positive, Math.abs(t)];
      return `rgb(${from.map((channel, c) => Math.round(channel + (to[c] - channel) * share)).join(" ")})`;
    });
    return this.ramp[Math.round((Math.tanh(value) + 1) * 32)];
  }

  show(tree, kind) {
    this.tree = tree;
    this.resize();
    this.layout = kind === "rings" ? layoutRings(tree) : layoutRows(tree, this.width / this.height);
    this.fit();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    this.width = Math.max(clientWidth, 1);
    this.height = Math.max(clientHeight, 1);
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  fit() {
    const box = boundsOf(this.layout);
    const labels = this.layout.kind === "rows" ? 170 : 0; // leaves have their text to the right
    const bottom = MARGIN + 34; // the legend
    const width = Math.max(box.right - box.left, 1);
    const height = Math.max(box.bottom - box.top, 1);
    this.scale = Math.min((this.width - 2 * MARGIN - labels) / width, (this.height - MARGIN - bottom) / height, 1.6);
    this.scale = Math.max(this.scale, 1e-3);
    this.left = (this.width - labels - width * this.scale) / 2 - box.left * this.scale;
    this.top = (this.height - bottom + MARGIN - height * this.scale) / 2 - box.top * this.scale;
    this.isFitted = true;
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.01), 12);
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.isFitted = false;
  }

  move(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.isFitted = false;
  }

  at(node) {
    return [this.layout.x[node] * this.scale + this.left, this.layout.y[node] * this.scale + this.top];
  }

  // Moves the plane so that the node is well inside the window.
  reveal(node) {
    const [x, y] = this.at(node);
    const pad = 60;
    const dx = x < pad ? pad - x : x > this.width - pad - 60 ? this.width - pad - 60 - x : 0;
    const dy = y < pad ? pad - y : y > this.height - pad - 30 ? this.height - pad - 30 - y : 0;
    if (dx || dy) this.move(dx, dy);
  }

  nodeAt(x, y) {
    let [best, nearest] = [NONE, NEAR * NEAR];
    for (let node = 0; node < this.tree.numNodes; node++) {
      const [nx, ny] = this.at(node);
      const distance = (nx - x) ** 2 + (ny - y) ** 2;
      if (distance < nearest) [best, nearest] = [node, distance];
    }
    return best;
  }

  // Pixels between neighbours decide how big nodes may be; visits make the difference among them.
  radiusOf(node) {
    const room = Math.min(this.layout.row * this.scale * 0.42, this.layout.column * this.scale * 0.3);
    const base = Math.min(Math.max(room, 2.1), 9);
    const visits = this.tree.now.visits[node];
    const size = this.tree.is_terminal[node] ? 0.95 : 0.55 + 0.12 * Math.log2(1 + visits);
    return Math.max(base * Math.min(size, 1.25), node === 0 ? 3 : 1.3);
  }

  draw(chosen, hovered, fades) {
    const { context, tree } = this;
    context.clearRect(0, 0, this.width, this.height);
    const isSeen = (x, y, pad) => x > -pad && x < this.width + pad && y > -pad && y < this.height + pad;
    const strength = (node) => (fades && node > 0 && tree.num_trained[node] === 0 ? 0.14 : 1);
    context.lineCap = "round";
    for (let node = 1; node < tree.numNodes; node++) this.edge(node, isSeen, strength(node));
    const fresh = tree.isLast ? [] : tree.creditedNow();
    for (const leaf of fresh) this.trail(leaf, this.colours[VERDICTS[tree.outcome[leaf]]], 3.5);
    if (chosen > 0) this.trail(chosen, this.colours.accent, 2.5);
    const ranks = tree.frontier();
    const cursors = new Set(tree.cursors);
    this.drawn = 0;
    for (let node = tree.numNodes - 1; node >= 0; node--) {
      const [x, y] = this.at(node);
      if (!isSeen(x, y, 30)) continue;
      context.globalAlpha = strength(node);
      this.node(node, x, y, ranks.get(node), cursors.has(node), node === chosen, node === hovered);
      this.drawn++;
    }
    context.globalAlpha = 1;
    this.labels(isSeen, strength);
  }

  edgePath(node) {
    const { context, layout } = this;
    const parent = this.tree.parent[node];
    const [fromX, fromY] = this.at(parent);
    const [toX, toY] = this.at(node);
    context.beginPath();
    context.moveTo(fromX, fromY);
    if (layout.kind === "rows") {
      const middle = (fromX + toX) / 2;
      context.bezierCurveTo(middle, fromY, middle, toY, toX, toY);
    } else {
      this.spiral(parent === 0 ? layout.angle[node] : layout.angle[parent], layout.angle[node], this.tree.depth[node]);
    }
  }

  // From the ring above to that of `depth`: the angle turns smoothly while the radius grows, so that no edge cuts across.
  spiral(from, to, depth) {
    const { context, layout } = this;
    const parts = Math.min(Math.max(Math.ceil(Math.abs(to - from) * 14), 5), 40);
    for (let i = 1; i <= parts; i++) {
      const t = i / parts;
      const angle = from + (to - from) * t * t * (3 - 2 * t);
      const radius = (depth - 1 + t) * layout.ring * this.scale;
      context.lineTo(this.left + radius * Math.cos(angle), this.top + radius * Math.sin(angle));
    }
  }

  edge(node, isSeen, strength) {
    const { context, tree } = this;
    const [x, y] = this.at(node);
    const [px, py] = this.at(tree.parent[node]);
    if (!isSeen(x, y, 400) && !isSeen(px, py, 400)) return;
    const visits = tree.now.visits[node];
    const size = Math.min(Math.max(this.scale, 0.35), 1.4);
    context.lineWidth = Math.max((0.7 + 1.15 * Math.log2(1 + visits)) * size, 0.6);
    context.strokeStyle = visits ? this.colourOf(tree.now.value[node]) : this.colours.edge;
    context.globalAlpha = strength * (visits ? 0.55 : 0.8);
    this.edgePath(node);
    context.stroke();
    context.globalAlpha = 1;
  }

  trail(leaf, colour, width) {
    const { context } = this;
    context.strokeStyle = colour;
    context.lineWidth = width;
    for (const node of this.tree.path(leaf)) {
      this.edgePath(node);
      context.stroke();
    }
  }

  node(node, x, y, rank, isCursor, isChosen, isHovered) {
    const { context, tree, colours } = this;
    const r = this.radiusOf(node);
    const outcome = tree.is_terminal[node] ? tree.outcome[node] : 0;
    const isFilled = outcome ? tree.isCredited(node) : tree.now.visits[node] > 0;
    const colour = outcome ? colours[VERDICTS[outcome]] : isFilled ? this.colourOf(tree.now.value[node]) : colours.edge;
    if (!tree.isLast && tree.born[node] === tree.frame) {
      context.fillStyle = colours.accent;
      context.globalAlpha *= 0.22;
      context.beginPath();
      context.arc(x, y, r + 6, 0, 2 * Math.PI);
      context.fill();
      context.globalAlpha = Math.min(context.globalAlpha / 0.22, 1);
    }
    context.beginPath();
    if (outcome === 2) context.rect(x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r);
    else if (outcome === 3) triangle(context, x, y, r * 1.15);
    else context.arc(x, y, r, 0, 2 * Math.PI);
    context.fillStyle = isFilled ? colour : colours.panel;
    context.fill();
    context.lineWidth = Math.min(1.6, r * 0.5);
    context.strokeStyle = isFilled && outcome ? colours.panel : colour;
    context.setLineDash([]);
    if (!isFilled || !outcome) {
      if (!outcome) context.strokeStyle = isFilled ? colours.panel : colours.faint;
      context.stroke();
    }
    if (outcome && r >= 4.5) mark(context, outcome, x, y, r, isFilled ? colours.panel : colour);
    if (rank !== undefined && r >= 2) this.ring(x, y, r + 2.6, colours.soft, 1.1, [2.5, 2.2]);
    if (rank !== undefined && rank <= 9 && r >= 5) {
      context.fillStyle = tree.now.visits[node] ? readable(context.fillStyle) : colours.soft;
      context.font = `600 ${Math.round(r * 1.25)}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(String(rank), x, y + 0.5);
    }
    if (isCursor) this.ring(x, y, r + 4, colours.text, 2.6, []); // the blue one is the chosen node's
    if (isHovered || isChosen) this.ring(x, y, r + (isCursor ? 8 : 5), colours.accent, isChosen ? 2.2 : 1.4, []);
  }

  ring(x, y, radius, colour, width, dash) {
    const { context } = this;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.setLineDash(dash);
    context.lineWidth = width;
    context.strokeStyle = colour;
    context.stroke();
    context.setLineDash([]);
  }

  // The text of segments, where there is room for it.
  labels(isSeen, strength) {
    const { context, tree, layout } = this;
    const row = layout.row * this.scale;
    if (layout.kind !== "rows" || row < 13) return;
    const size = Math.min(Math.max(row * 0.5, 9.5), 12);
    context.font = `${size}px ${this.mono}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const most = Math.floor((layout.column * this.scale - 26) / (size * 0.61));
    if (most < 3) return;
    context.lineWidth = 3;
    context.strokeStyle = this.colours.panel;
    context.fillStyle = this.colours.soft;
    for (let node = 1; node < tree.numNodes; node++) {
      const [x, y] = this.at(node);
      if (!isSeen(x, y, 80)) continue;
      const text = tree.label(node, tree.children[node].length ? most : most + 6);
      const left = x + this.radiusOf(node) + 6;
      const lift = tree.children[node].length ? -size * 0.72 : 0; // above the edges that go on
      context.globalAlpha = strength(node);
      context.strokeText(text, left, y + lift);
      context.fillText(text, left, y + lift);
    }
    context.globalAlpha = 1;
  }
}

function triangle(context, x, y, r) {
  context.moveTo(x, y - r);
  context.lineTo(x + r * 0.95, y + r * 0.75);
  context.lineTo(x - r * 0.95, y + r * 0.75);
  context.closePath();
}

function mark(context, outcome, x, y, r, colour) {
  context.strokeStyle = colour;
  context.lineWidth = Math.max(r * 0.26, 1.2);
  context.beginPath();
  if (outcome === 1) {
    context.moveTo(x - r * 0.42, y + r * 0.05);
    context.lineTo(x - r * 0.1, y + r * 0.36);
    context.lineTo(x + r * 0.45, y - r * 0.34);
  } else if (outcome === 2) {
    context.moveTo(x - r * 0.38, y - r * 0.38);
    context.lineTo(x + r * 0.38, y + r * 0.38);
    context.moveTo(x + r * 0.38, y - r * 0.38);
    context.lineTo(x - r * 0.38, y + r * 0.38);
  }
  context.stroke();
}

// Black or white, whichever is read better on the colour.
function readable(colour) {
  const hex = colour.startsWith("#") ? [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) : colour.match(/\d+/g).map(Number);
  return 0.299 * hex[0] + 0.587 * hex[1] + 0.114 * hex[2] > 140 ? "#16181c" : "#ffffff";
}
