// State and events: which tree, which node, which iteration, and the keys.

const BIG = 300; // nodes from which rings are the better first look

class Viewer {
  constructor() {
    const find = (id) => document.getElementById(id);
    this.parts = Object.fromEntries(
      ["step", "problem", "filter", "layout", "trained", "play", "frame", "count", "speed", "keys", "tip", "said"].map((id) => [id, find(id)]),
    );
    this.entries = JSON.parse(find("index").textContent); // one a tree: {step, place, problem, solved, kind, nodes}
    this.filter = "all";
    this.chosen = 0;
    this.hovered = NONE;
    this.fades = false;
    this.steps = new Map();
    this.drawing = new Drawing(find("tree"));
    this.panel = new Panel(find("panel"), (node) => this.choose(node));
    this.entry = NONE;
    this.firstDrawn = null; // milliseconds from the navigation to the first picture
    this.isDue = false;
    this.listen(find);
  }

  // --- which tree

  get matching() {
    return this.entries.filter(({ solved }) => this.filter === "all" || solved === (this.filter === "solved"));
  }

  async open(entry) {
    if (!entry) return;
    this.stop();
    if (!this.steps.has(entry.step)) this.steps.set(entry.step, readStep(entry.step));
    this.entry = entry;
    const trees = await this.steps.get(entry.step);
    if (this.entry !== entry) return; // another one was asked for meanwhile
    this.tree = trees[entry.place];
    this.tree.seek(this.tree.numFrames - 1);
    this.parts.frame.max = this.tree.numFrames - 1;
    this.kind = this.wanted ?? (this.tree.size > BIG ? "rings" : "rows");
    this.drawing.show(this.tree, this.kind);
    this.lists();
    this.choose(0);
    this.moved();
  }

  lists() {
    const option = (text, value, chosen) => {
      const made = element("option", { value }, text);
      made.selected = chosen;
      return made;
    };
    const matching = this.matching;
    const steps = [...new Set(matching.map(({ step }) => step))];
    this.parts.step.replaceChildren(...steps.map((step) => option(String(step), step, step === this.entry.step)));
    const here = matching.filter(({ step }) => step === this.entry.step);
    this.parts.problem.replaceChildren(
      ...here.map((entry) => option(`${entry.solved ? "✓" : "✕"} ${entry.problem} · ${entry.kind}, ${entry.nodes} nodes`, entry.place, entry === this.entry)),
    );
    this.parts.layout.textContent = this.kind === "rings" ? "Rows" : "Rings";
  }

  by(offset) {
    const matching = this.matching;
    const at = matching.indexOf(this.entry);
    if (matching.length) this.open(matching[(Math.max(at, 0) + offset + matching.length) % matching.length]);
  }

  byStep(offset) {
    const steps = [...new Set(this.matching.map(({ step }) => step))];
    const step = steps[steps.indexOf(this.entry.step) + offset];
    if (step !== undefined) this.open(this.matching.find((entry) => entry.step === step));
  }

  choose_filter(name) {
    const before = this.filter;
    this.filter = name;
    const matching = this.matching;
    if (!matching.length) {
      this.say(`no ${name} problems are recorded`);
      this.filter = before;
    }
    this.parts.filter.value = this.filter;
    if (this.matching.includes(this.entry)) this.lists();
    else this.open(this.matching.find(({ step }) => step >= this.entry.step) ?? this.matching[0]);
  }

  // --- which node

  choose(node) {
    if (node >= this.tree.numNodes) this.seek(this.tree.born[node]);
    this.chosen = node;
    this.panel.show(this.tree, node);
    if (node > 0) this.drawing.reveal(node);
    const verdict = this.tree.is_terminal[node] ? `, ${VERDICTS[this.tree.outcome[node]]}` : "";
    this.say(node ? `node ${node}, depth ${this.tree.depth[node]}${verdict}: ${this.tree.label(node, 80)}` : `root of problem ${this.tree.facts.problem}`);
    this.redraw();
  }

  toParent() {
    if (this.chosen > 0) this.choose(this.tree.parent[this.chosen]);
  }

  toChild() {
    const child = this.tree.children[this.chosen].find((node) => node < this.tree.numNodes);
    if (child !== undefined) this.choose(child);
  }

  toNeighbour(offset) {
    const { tree, drawing } = this;
    const depth = tree.depth[this.chosen];
    const place = drawing.layout.kind === "rows" ? drawing.layout.y : drawing.layout.angle;
    const level = [];
    for (let node = 0; node < tree.numNodes; node++) if (tree.depth[node] === depth) level.push(node);
    level.sort((a, b) => place[a] - place[b]);
    const next = level[level.indexOf(this.chosen) + offset];
    if (next !== undefined) this.choose(next);
  }

  toTrajectory() {
    const { leaves } = this.tree;
    const at = this.tree.trajectory.get(this.chosen) ?? NONE;
    if (leaves.length) this.choose(leaves[(at + 1) % leaves.length]);
  }

  // --- which iteration

  seek(frame) {
    this.tree.seek(Math.min(Math.max(frame, 0), this.tree.numFrames - 1));
    this.moved();
  }

  moved() {
    const { tree, parts } = this;
    parts.frame.value = tree.frame;
    parts.count.textContent = `iteration ${tree.frame} of ${tree.numFrames - 1} · ${tree.numNodes} nodes · ${tree.numCredits} credited`;
    if (this.chosen >= tree.numNodes) this.choose(0);
    else this.panel.update(tree, this.chosen);
    this.redraw();
  }

  play() {
    if (this.timer) return this.stop();
    if (this.tree.isLast) this.seek(0);
    this.parts.play.textContent = "❚❚ Pause";
    const turn = () => {
      if (this.tree.isLast) return this.stop();
      this.seek(this.tree.frame + 1);
      this.timer = setTimeout(turn, 1000 / Number(this.parts.speed.value));
    };
    this.timer = setTimeout(turn, 1000 / Number(this.parts.speed.value));
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.parts.play.textContent = "▶ Play";
  }

  // --- the picture

  redraw() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (!this.tree) return;
      this.drawing.draw(this.chosen, this.hovered, this.fades);
      this.firstDrawn ??= performance.now();
    });
  }

  // By the keys: about the chosen node, which stays where it is.
  zoom(factor) {
    this.drawing.zoom(factor, ...this.drawing.at(this.chosen));
    this.redraw();
  }

  switchLayout() {
    this.wanted = this.kind = this.kind === "rows" ? "rings" : "rows";
    this.drawing.show(this.tree, this.kind);
    this.lists();
    this.redraw();
  }

  fade() {
    this.fades = !this.fades;
    this.parts.trained.setAttribute("aria-pressed", this.fades);
    this.redraw();
  }

  setTheme(name) {
    document.documentElement.dataset.theme = name;
    this.drawing.readColours();
    this.redraw();
  }

  say(text) {
    this.parts.said.textContent = text;
  }

  hover(node, x, y) {
    const { tip } = this.parts;
    if (node !== this.hovered) {
      this.hovered = node;
      this.drawing.canvas.classList.toggle("over", node !== NONE);
      tip.hidden = node === NONE;
      if (node !== NONE) {
        const { value, visits } = this.tree.now;
        const facts = `node ${node} · q ${shown(value[node])} · N ${visits[node]} · entropy ${shown(this.tree.mean_nll[node])} · advantage ${shown(this.tree.advantages[node])}`;
        const text = node === 0 ? this.tree.facts.question.slice(0, 200) : this.tree.label(node, 160);
        tip.replaceChildren(element("div", { class: "soft number" }, facts), element("div", { class: "text" }, text));
      }
      this.redraw();
    }
    if (node === NONE) return;
    tip.style.left = `${Math.min(x + 16, this.drawing.width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, this.drawing.height - tip.offsetHeight - 8)}px`;
  }

  // --- events

  listen(find) {
    const { parts } = this;
    const on = (id, act) => find(id).addEventListener("click", act);
    on("previous", () => this.by(-1));
    on("next", () => this.by(1));
    on("layout", () => this.switchLayout());
    on("trained", () => this.fade());
    on("fit", () => { this.drawing.fit(); this.redraw(); });
    on("theme", () => this.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
    on("help", () => parts.keys.showModal());
    on("first", () => this.seek(0));
    on("back", () => this.seek(this.tree.frame - 1));
    on("play", () => this.play());
    on("forward", () => this.seek(this.tree.frame + 1));
    on("last", () => this.seek(this.tree.numFrames - 1));
    parts.frame.addEventListener("input", () => { this.stop(); this.seek(Number(parts.frame.value)); });
    parts.filter.addEventListener("change", () => this.choose_filter(parts.filter.value));
    parts.step.addEventListener("change", () => this.open(this.matching.find(({ step }) => step === Number(parts.step.value))));
    parts.problem.addEventListener("change", () => this.open(this.entries.find((entry) => entry.step === this.entry.step && entry.place === Number(parts.problem.value))));
    this.listenToPointer(this.drawing.canvas);
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => {
      if (!this.tree) return;
      const { isFitted } = this.drawing;
      this.drawing.resize();
      if (isFitted) this.drawing.show(this.tree, this.kind);
      this.redraw();
    }).observe(find("stage"));
  }

  listenToPointer(canvas) {
    const held = new Map(); // pointers that are down, for pinching
    let isMoved = false;
    const place = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      held.set(event.pointerId, place(event));
      isMoved = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.tree) return;
      const [x, y] = place(event);
      const from = held.get(event.pointerId);
      if (!from) return this.hover(this.drawing.nodeAt(x, y), x, y);
      if (Math.hypot(x - from[0], y - from[1]) < 4 && !isMoved) return;
      isMoved = true;
      canvas.classList.add("dragging");
      const other = [...held].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const spread = (a) => Math.hypot(a[0] - other[0], a[1] - other[1]);
        this.drawing.zoom(spread([x, y]) / Math.max(spread(from), 1), (x + other[0]) / 2, (y + other[1]) / 2);
      } else this.drawing.move(x - from[0], y - from[1]);
      held.set(event.pointerId, [x, y]);
      this.redraw();
    });
    const release = (event) => {
      const wasHeld = held.delete(event.pointerId);
      canvas.classList.remove("dragging");
      if (!wasHeld || isMoved || event.type === "pointercancel" || !this.tree) return;
      const node = this.drawing.nodeAt(...place(event));
      this.choose(Math.max(node, 0));
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => this.hover(NONE));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.drawing.zoom(Math.exp(-event.deltaY * 0.0016), ...place(event));
      this.redraw();
    }, { passive: false });
  }

  key(event) {
    const { target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || !this.tree || this.parts.keys.open) return;
    const isControl = target.matches("select, input");
    const filters = ["all", "solved", "unsolved"];
    const acts = {
      ArrowLeft: () => this.toParent(), ArrowRight: () => this.toChild(),
      ArrowUp: () => this.toNeighbour(-1), ArrowDown: () => this.toNeighbour(1),
      " ": () => this.play(), ",": () => this.seek(this.tree.frame - 1), ".": () => this.seek(this.tree.frame + 1),
      Home: () => this.seek(0), End: () => this.seek(this.tree.numFrames - 1),
      "[": () => this.by(-1), "]": () => this.by(1), "{": () => this.byStep(-1), "}": () => this.byStep(1),
      c: () => this.toTrajectory(), f: () => { this.drawing.fit(); this.redraw(); },
      "+": () => this.zoom(1.3), "-": () => this.zoom(1 / 1.3),
      r: () => this.switchLayout(), l: () => this.fade(), t: () => document.getElementById("theme").click(),
      s: () => this.choose_filter(filters[(filters.indexOf(this.filter) + 1) % 3]),
      "?": () => this.parts.keys.showModal(), Escape: () => this.choose(0),
    };
    const act = acts[event.key];
    // Lists and sliders keep the keys that they know themselves, buttons keep the space bar.
    if (!act || (isControl && event.key.length > 1) || (event.key === " " && target.matches("select, input, button"))) return;
    event.preventDefault();
    act();
  }
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");
document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
window.viewer = new Viewer(); // for scripts and tests
dark.addEventListener("change", () => window.viewer.setTheme(dark.matches ? "dark" : "light"));
window.viewer.open(window.viewer.entries[0]);
