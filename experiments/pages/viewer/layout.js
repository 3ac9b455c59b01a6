// Where nodes are, in a plane of its own: rows (depth to the right, leaves below each other) or rings (depth outwards).

const ROW = 26;

// Leaves take places one after the other, a parent stands in the middle of its children.
function placesOf(tree) {
  const place = new Float64Array(tree.size);
  const stack = [[0, 0]];
  let next = 0;
  while (stack.length) {
    const top = stack[stack.length - 1];
    const [node, done] = top;
    const children = tree.children[node];
    if (done < children.length) {
      top[1]++;
      stack.push([children[done], 0]);
      continue;
    }
    stack.pop();
    if (!children.length) place[node] = next++;
    else place[node] = (place[children[0]] + place[children[children.length - 1]]) / 2;
  }
  return { place, numLeaves: Math.max(next, 1) };
}

function layoutRows(tree, aspect) {
  const { place, numLeaves } = placesOf(tree);
  const height = numLeaves * ROW;
  const column = Math.min(Math.max((height * aspect) / Math.max(tree.maxDepth, 1), 90), 260);
  const x = Float64Array.from(tree.depth, (depth) => depth * column);
  const y = place.map((leaf) => leaf * ROW);
  return { kind: "rows", x, y, column, row: ROW };
}

function layoutRings(tree) {
  const { place, numLeaves } = placesOf(tree);
  const levels = Math.max(tree.maxDepth, 1);
  // Wide enough that leaves on the outermost ring do not touch.
  const ring = Math.max((numLeaves * ROW * 0.62) / (2 * Math.PI * levels), 46);
  const x = new Float64Array(tree.size);
  const y = new Float64Array(tree.size);
  const angle = new Float64Array(tree.size);
  for (let node = 0; node < tree.size; node++) {
    angle[node] = (2 * Math.PI * (place[node] + 0.5)) / numLeaves - Math.PI / 2;
    const radius = tree.depth[node] * ring;
    x[node] = radius * Math.cos(angle[node]);
    y[node] = radius * Math.sin(angle[node]);
  }
  return { kind: "rings", x, y, angle, ring, column: ring, row: (2 * Math.PI * levels * ring) / numLeaves };
}

function boundsOf({ x, y }) {
  const box = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity };
  for (let i = 0; i < x.length; i++) {
    box.left = Math.min(box.left, x[i]);
    box.right = Math.max(box.right, x[i]);
    box.top = Math.min(box.top, y[i]);
    box.bottom = Math.max(box.bottom, y[i]);
  }
  return box;
}
