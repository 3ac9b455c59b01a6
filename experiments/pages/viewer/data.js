// What the page holds: one compressed block a step, read when the step is first looked at.

const NONE = -1;
const UNKNOWN = 65535; // of log-probs, which come as thousandths of a nat below zero
const VERDICTS = ["", "correct", "wrong", "incomplete"];
const FATES = ["trained on", "left out: garbled or repeating", "left out: no signal in its group", "not needed for the update"];
const SHORT_FATES = ["trained on", "garbled", "no signal", "not needed"];
const ORIGINS = ["search", "direct sample", "solution cache"];
const TYPES = { i4: Int32Array, f4: Float32Array, u2: Uint16Array, u1: Uint8Array };

async function readStep(step) {
  const coded = document.getElementById(`step-${step}`).textContent.trim();
  const bytes = Uint8Array.from(atob(coded), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const begin = 4 + size;
  return header.trees.map(({ facts, arrays }) => {
    const fields = {};
    for (const [name, [type, offset, length]] of Object.entries(arrays)) {
      fields[name] = new TYPES[type](buffer, begin + offset, length);
    }
    return new RecordedTree(facts, fields);
  });
}

// One tree: the final arrays, and its state at one iteration (`value`, `visits`, `scores`, `numNodes`, `numCredits`).
class RecordedTree {
  constructor(facts, fields) {
    this.facts = facts;
    Object.assign(this, fields);
    this.size = this.parent.length;
    this.numFrames = this.frame_nodes.length;
    this.starts = new Int32Array(this.size + 1);
    for (let node = 0; node < this.size; node++) this.starts[node + 1] = this.starts[node] + this.segment_lengths[node];
    this.children = Array.from({ length: this.size }, () => []);
    for (let node = 1; node < this.size; node++) this.children[this.parent[node]].push(node);
    this.maxDepth = this.depth.reduce((most, depth) => Math.max(most, depth), 0);
    this.born = new Int32Array(this.size); // the iteration that made the node
    let frame = 0;
    for (let node = 0; node < this.size; node++) {
      while (this.frame_nodes[frame] <= node) frame++;
      this.born[node] = frame;
    }
    this.trajectory = new Map(Array.from(this.leaves, (leaf, m) => [leaf, m]));
    this.frame = NONE;
    this.seek(this.numFrames - 1);
  }

  get numCorrect() {
    return this.leaves.reduce((count, leaf) => count + (this.outcome[leaf] === 1), 0);
  }

  // Goes to an iteration: on by the changes in between, back by all of them from the start.
  seek(frame) {
    if (this.frame < 0 || frame < this.frame) {
      this.frame = NONE;
      this.now = { value: new Float32Array(this.size), visits: new Int32Array(this.size), scores: new Float32Array(this.size).fill(NaN) };
    }
    const { value, visits, scores } = this.now;
    const begin = this.frame < 0 ? 0 : this.change_ends[this.frame];
    for (let i = begin; i < this.change_ends[frame]; i++) {
      const node = this.change_nodes[i];
      value[node] = this.change_values[i];
      visits[node] = this.change_visits[i];
      scores[node] = this.change_scores[i];
    }
    this.frame = frame;
    this.numNodes = this.frame_nodes[frame];
    this.numCredits = this.frame_credits[frame];
    const width = this.frame_cursors.length / this.numFrames;
    this.cursors = this.frame_cursors.subarray(frame * width, (frame + 1) * width).filter((node) => node >= 0);
    this.ranks = undefined;
  }

  get isLast() {
    return this.frame === this.numFrames - 1;
  }

  // Place of each frontier node in the order of its score, from 1.
  frontier() {
    if (this.ranks) return this.ranks;
    const { scores } = this.now;
    const nodes = [];
    for (let node = 0; node < this.numNodes; node++) if (!Number.isNaN(scores[node])) nodes.push(node);
    nodes.sort((a, b) => scores[b] - scores[a] || a - b);
    this.ranks = new Map(nodes.map((node, i) => [node, i + 1]));
    return this.ranks;
  }

  isCredited(node) {
    return this.credit[node] >= 0 && this.credit[node] < this.numCredits;
  }

  // The terminals credited in the present iteration.
  creditedNow() {
    const before = this.frame > 0 ? this.frame_credits[this.frame - 1] : 0;
    return Array.from(this.leaves.subarray(before, this.numCredits));
  }

  path(node) {
    const path = [];
    for (; node > 0; node = this.parent[node]) path.push(node);
    return path.reverse();
  }

  // Pieces of text of a run of tokens: [text, log-prob or null, whether it is a name of a special token]. A character
  // whose bytes several tokens share appears with the last of them.
  pieces(words, logProbs) {
    const decoder = new TextDecoder();
    const found = [];
    for (let i = 0; i < words.length; i++) {
      const word = words[i];
      const bytes = this.vocabulary_bytes.subarray(word ? this.vocabulary_ends[word - 1] : 0, this.vocabulary_ends[word]);
      const special = this.vocabulary_special[word] === 1;
      const text = special ? new TextDecoder().decode(bytes) : decoder.decode(bytes, { stream: true });
      const known = logProbs && logProbs[i] !== UNKNOWN;
      found.push([text, known ? -logProbs[i] / 1000 : null, special]);
    }
    return found;
  }

  segmentPieces(node) {
    const [begin, end] = [this.starts[node], this.starts[node + 1]];
    return this.pieces(this.tokens.subarray(begin, end), this.log_probs.subarray(begin, end));
  }

  promptPieces() {
    return this.pieces(this.prompt, null);
  }

  // The first characters of a segment, for labels.
  label(node, most = 60) {
    this.labels ??= new Map();
    if (!this.labels.has(node)) {
      const begin = this.starts[node];
      const words = this.tokens.subarray(begin, Math.min(this.starts[node + 1], begin + 40));
      const text = this.pieces(words, null).map(([piece]) => piece).join("");
      this.labels.set(node, text.replace(/\s+/g, " "));
    }
    const text = this.labels.get(node);
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  }
}
