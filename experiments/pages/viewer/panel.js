// The chosen node in words. Text of models goes in as text nodes and nothing else: it is not to be trusted.

const SLICE = 800; // tokens put into the page at a time; the rest follows in later turns

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shown(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  const text = value.toFixed(digits);
  return value < 0 ? `−${text.slice(1)}` : text;
}

// The first place from `at` on behind the end of a line, or `at` where none is near.
function lineEnd(pieces, at) {
  for (let end = at; end < Math.min(at + SLICE, pieces.length); end++) if (pieces[end - 1][0].endsWith("\n")) return end;
  return at;
}

class Panel {
  constructor(place, choose) {
    this.place = place;
    this.choose = choose;
    this.turn = 0; // of the text being filled in; an older one stops
  }

  show(tree, node) {
    this.turn++;
    const sections = node === 0 ? [this.problem(tree), this.trajectories(tree, node)] : [this.facts(tree, node), this.text(tree, node), this.trajectories(tree, node)];
    this.place.replaceChildren(...sections);
    this.place.scrollTop = 0;
  }

  // Numbers follow the player; texts stay.
  update(tree, node) {
    const old = this.place.querySelector("#facts");
    if (old) old.replaceWith(this.facts(tree, node));
  }

  problem(tree) {
    const { facts } = tree;
    const solved = tree.numCorrect;
    const status = { finished: "all trajectories found", exhausted: "nothing left to expand", out_of_nodes: "node budget used up", out_of_tokens: "token budget used up" };
    const kind = facts.kind === "search" ? `${tree.size} nodes, depth ${tree.maxDepth}; ${status[facts.status] ?? facts.status}` : `${tree.size - 1} direct samples, no tree`;
    const question = element("div", { class: "text", id: "question" });
    question.append(facts.question);
    const prompt = element("div", { class: "text prompt" });
    for (const [text, , special] of tree.promptPieces()) prompt.append(special ? element("b", { class: "special" }, text) : text);
    return element(
      "section", { id: "about" },
      element("h2", {}, `Problem ${facts.problem}`),
      element("p", { class: "soft" }, `${kind}. ${solved} of ${tree.leaves.length} trajectories correct.`),
      element("h3", {}, "Question"), question,
      element("h3", {}, "Answer"), element("div", { class: "text", id: "answer" }, facts.answer),
      element("h3", {}, "Prompt"), prompt,
    );
  }

  facts(tree, node) {
    const { value, visits, scores } = tree.now;
    const verdict = tree.is_terminal[node] ? VERDICTS[tree.outcome[node]] : "";
    const words = { correct: "✓ correct", wrong: "✕ wrong", incomplete: "▲ cut off, no answer" };
    const rank = tree.frontier().get(node);
    const score = scores[node];
    const m = tree.trajectory.get(node);
    const trained = tree.num_trained[node];
    const rows = [
      ["q value", shown(value[node])],
      ["Q = q / N", shown(value[node] / Math.max(visits[node], 1))],
      ["N visits", String(visits[node])],
      ["entropy, segment", `${shown(tree.mean_nll[node])} nat`],
      ["entropy, path", `${shown(tree.path_entropy[node])} nat`],
      ["tokens", String(tree.segment_lengths[node])],
      ["advantage", shown(tree.advantages[node])],
      ["trained on", trained ? `${trained} of ${tree.leaves.length} paths` : "no"],
      ["frontier", rank === undefined ? "not in it" : `${rank}. of ${tree.frontier().size}, F ${shown(score)}`],
      ["made in iteration", String(tree.born[node])],
      ["origin", ORIGINS[tree.origin[node]]],
      m === undefined ? ["credited", tree.is_terminal[node] ? "no" : "–"] : ["credited", `as ${m + 1}. of ${tree.leaves.length}`],
    ];
    return element(
      "section", { id: "facts" },
      element("h2", {}, `Node ${node} `, element("span", { class: "soft" }, `depth ${tree.depth[node]} `), verdict ? element("span", { class: `verdict ${verdict}` }, words[verdict]) : null),
      m === undefined ? null : element("p", { class: "soft", id: "fate" }, `Reward ${shown(tree.rewards[m], 1)}, ${FATES[tree.fates[m]]}.`),
      element("dl", { class: "facts" }, ...rows.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text)))),
    );
  }

  text(tree, node) {
    const path = tree.path(node);
    const count = path.reduce((sum, part) => sum + tree.segment_lengths[part], 0);
    const own = element("div", { class: "text", id: "segment" });
    const whole = element("div", { class: "text", id: "path" });
    const jobs = [[own, tree.segmentPieces(node), "piece", node]];
    jobs.push([whole, tree.promptPieces(), "piece prompt", 0]);
    for (const part of path) jobs.push([whole, null, part === node ? "piece own" : "piece", part]);
    this.fill(tree, jobs);
    const scale = element("span", { class: "tokens" }, "sure", element("i"), "unsure");
    return element(
      "section", {},
      element("h3", {}, "Segment", scale), own,
      element("h3", {}, "From the root", element("span", {}, `${count} tokens`)), whole,
    );
  }

  // Puts tokens in place, a slice a turn, so that paths of many thousand tokens do not hold the page up.
  async fill(tree, jobs) {
    const turn = this.turn;
    let left = SLICE;
    this.isFilling = true;
    for (const [place, ready, name, part] of jobs) {
      const pieces = ready ?? tree.segmentPieces(part);
      const span = element("span", { class: name });
      if (part > 0) span.addEventListener("dblclick", () => this.choose(part));
      place.append(span);
      for (let i = 0, end = 0; i < pieces.length; i = end) {
        // A slice that ends with its line is a block of its own: then the page lays out what is in view alone.
        end = i + SLICE < pieces.length ? lineEnd(pieces, i + SLICE) : pieces.length;
        const isBlock = end < pieces.length && pieces[end - 1][0].endsWith("\n");
        const slice = element("span", { class: isBlock ? "lines" : "" });
        for (const [text, logProb, special] of pieces.slice(i, end)) slice.append(this.token(text, logProb, special));
        span.append(slice);
        left -= end - i;
        if (left > 0) continue;
        await new Promise((resolve) => setTimeout(resolve));
        if (turn !== this.turn) return;
        left = SLICE;
      }
    }
    this.isFilling = false;
  }

  token(text, logProb, special) {
    const made = document.createElement("b");
    made.textContent = text;
    if (special) made.className = "special";
    if (logProb === null) return made;
    made.title = `log-prob ${shown(logProb)}, probability ${shown(Math.exp(logProb))}`;
    const share = Math.min(-logProb / 4, 1); // four nats are as unsure as it gets
    if (share > 0.012) made.style.backgroundColor = `rgb(var(--unsure) / ${(share * 60).toFixed(1)}%)`;
    return made;
  }

  trajectories(tree, node) {
    const words = { correct: "✓ correct", wrong: "✕ wrong", incomplete: "▲ cut off" };
    const rows = Array.from(tree.leaves, (leaf, m) => {
      const verdict = VERDICTS[tree.outcome[leaf]];
      const count = tree.path(leaf).reduce((sum, part) => sum + tree.segment_lengths[part], 0);
      return element(
        "tr", { "data-leaf": leaf, class: leaf === node ? "chosen" : "", onclick: () => this.choose(leaf) },
        element("td", {}, String(m + 1)),
        element("td", {}, element("span", { class: `verdict ${verdict}` }, words[verdict] ?? verdict)),
        element("td", { class: "soft" }, SHORT_FATES[tree.fates[m]]),
        element("td", {}, shown(tree.advantages[leaf], 2)),
        element("td", {}, String(count)),
      );
    });
    const head = ["#", "verdict", "update", "adv.", "tokens"].map((name) => element("th", {}, name));
    return element(
      "section", {}, element("h3", {}, "Trajectories in the order of credit"),
      element("table", { id: "trajectories" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows)),
    );
  }
}
