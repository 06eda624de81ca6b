// Draw an animal: the contrastive encoder finds the silhouettes that are nearest to a
// drawing, beside those that raw pixels find. `root.live` has its functions, for tests.
const { classes, nearest: SHOWN, colours } = data;
const WAYS = { encoder: "by the encoder", pixels: "by raw pixels" };
const MAP = { width: 640, height: 400, margin: 22, thumb: 20, apart: 15 };
const state = { tool: "outline", size: 3, fit: true, x: 14, y: 14, trail: null, before: [] };
let live; // encoder and gallery, once they are loaded

// The drawing: white on black, 28 pixels a side, as the data set.
const board = make("canvas", {
  class: "board", width: SIDE, height: SIDE, tabindex: 0, role: "application",
  "aria-label": "drawing, 28 by 28 pixels. Arrow keys move the pencil, space draws a point, arrow keys with shift draw a line",
});
const ink = board.getContext("2d", { willReadFrequently: true });
const pixelsOf = () => ink.getImageData(0, 0, SIDE, SIDE).data.filter((_, i) => i % 4 === 0);
const put = (context, pixels) => {
  const image = context.createImageData(SIDE, SIDE);
  pixels.forEach((value, i) => image.data.set([value, value, value, 255], 4 * i));
  context.putImageData(image, 0, 0);
};
const thumbnail = () => make("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
const cursor = make("span", { class: "cursor" });

const keep = () => { state.before = [...state.before.slice(-49), pixelsOf()]; };
const replace = (pixels) => { keep(); put(ink, pixels); later(); };
const undo = () => {
  if (state.before.length) put(ink, state.before.pop());
  later();
};
const clear = () => { begin.querySelector("select").value = ""; replace(new Uint8Array(PIXELS)); };

// Changes of the whole drawing: those of fmkit.data.images, a mirror image and a shift.
const at = (pixels, x, y) => (x < 0 || y < 0 || x >= SIDE || y >= SIDE ? 0 : pixels[y * SIDE + x]);
const map = (f) => Uint8Array.from({ length: PIXELS }, (_, i) => f(i % SIDE, Math.floor(i / SIDE)));
const CHANGES = {
  mirror: (pixels) => map((x, y) => at(pixels, SIDE - 1 - x, y)),
  "shift by 2 pixels": (pixels) => map((x, y) => at(pixels, x - 2, y)),
  thicken: (pixels) => map((x, y) => {
    let largest = 0;
    for (let i = 0; i < 9; i++) largest = Math.max(largest, at(pixels, x + (i % 3) - 1, y + Math.floor(i / 3) - 1));
    return largest;
  }),
  "hard edges": (pixels) => map((x, y) => (at(pixels, x, y) > 127 ? 255 : 0)),
  "rotate by 30°": (pixels) => map((x, y) => {
    const middle = (SIDE - 1) / 2, cos = Math.cos(Math.PI / 6), sin = Math.sin(Math.PI / 6);
    const u = cos * (x - middle) - sin * (y - middle) + middle, v = sin * (x - middle) + cos * (y - middle) + middle;
    const left = Math.floor(u), top = Math.floor(v), across = u - left, down = v - top;
    const row = (y) => (1 - across) * at(pixels, left, y) + across * at(pixels, left + 1, y);
    return Math.round((1 - down) * row(top) + down * row(top + 1));
  }),
};

// A stroke goes from point to point, in pixels of the drawing; an outline is filled.
const stroke = (points, fill = false) => {
  ink.strokeStyle = ink.fillStyle = state.tool === "eraser" ? "#000" : "#fff";
  ink.lineWidth = fill ? 1 : state.size;
  ink.lineCap = ink.lineJoin = "round";
  ink.beginPath();
  points.forEach(([x, y]) => ink.lineTo(x, y));
  if (points.length === 1) ink.lineTo(points[0][0] + 0.01, points[0][1]);
  if (fill) ink.fill();
  ink.stroke();
};
const placeOf = (event) => {
  const box = board.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE];
};
board.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  keep();
  try { board.setPointerCapture(event.pointerId); } catch { /* it was released */ }
  state.trail = [placeOf(event)];
  draw();
});
board.addEventListener("pointermove", (event) => {
  if (!state.trail) return;
  state.trail.push(placeOf(event));
  draw();
});
const draw = () => {
  const outline = state.tool === "outline";
  if (outline) put(ink, state.before.at(-1)); // the outline is drawn anew, filled
  stroke(outline ? state.trail : state.trail.slice(-2), outline);
  later();
};
const lift = () => {
  if (!state.trail) return;
  state.trail = null;
  later();
};
board.addEventListener("pointerup", lift);
board.addEventListener("pointercancel", lift);
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
board.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = STEPS[event.key], from = [state.x, state.y];
  if (!step && event.key !== " ") return;
  event.preventDefault();
  if (step) {
    state.x = Math.max(0.5, Math.min(SIDE - 0.5, state.x + step[0]));
    state.y = Math.max(0.5, Math.min(SIDE - 0.5, state.y + step[1]));
  }
  showCursor();
  if (step && !event.shiftKey) return;
  keep();
  stroke(step ? [from, [state.x, state.y]] : [from]);
  later();
});
const showCursor = () => {
  const share = 100 / SIDE;
  Object.assign(cursor.style, {
    left: `${share * (state.x - state.size / 2)}%`, top: `${share * (state.y - state.size / 2)}%`,
    width: `${share * state.size}%`,
  });
};

// Controls
const article = (name) => (/^[aeiou]/.test(name) ? "an" : "a");
const begin = chooser("start with", [["", "an empty drawing"],
  ...classes.map((name, i) => [String(i), `${article(name)} ${name} of the test set`])], String(data.first), () => start());
const start = () => {
  const { value } = begin.querySelector("select");
  if (live) replace(value === "" ? new Uint8Array(PIXELS) : live.example(Number(value)));
};
const button = (text, onclick) => make("button", { type: "button", onclick }, text);
const tool = (name, text) => make("label", {}, make("input", {
  type: "radio", name: "draw-tool", value: name, checked: state.tool === name,
  onchange: () => { state.tool = name; },
}), ` ${text}`);
const output = make("output", {}, String(state.size));
const size = make("input", {
  type: "range", min: 1, max: 6, step: 1, value: state.size,
  oninput: () => { state.size = Number(size.value); output.textContent = size.value; showCursor(); },
});
const fitter = make("input", { type: "checkbox", checked: state.fit, onchange: () => { state.fit = fitter.checked; later(); } });

// What is found
const seen = thumbnail();
seen.className = "seen";
const found = {};
const lists = Object.entries(WAYS).map(([way, text]) => {
  found[way] = Array.from({ length: SHOWN }, () => {
    const picture = thumbnail(), name = make("span", { class: "name" }), cosine = make("span", { class: "number" });
    return { item: make("li", {}, picture, name, cosine), picture, name, cosine };
  });
  return make("div", {}, make("p", {}, `Nearest ${text}:`),
    make("ol", { class: "found", "aria-label": `nearest silhouettes ${text}` }, ...found[way].map(({ item }) => item)));
});
const said = make("p", { class: "said", role: "status" });
const facts = make("p", { class: "facts" });
const ratio = 2; // pixels of the map in one of CSS
const plane = make("canvas", { class: "plane", width: ratio * MAP.width, height: ratio * MAP.height, role: "img" });
const key = make("ul", { class: "key", "aria-label": "colours of the map" }, ...classes.map((name, i) => {
  const sample = make("span", { class: "sample" });
  sample.style.background = colours[i];
  return make("li", {}, sample, name);
}));

// The class of most of the nearest; of equal ones, that of the nearest.
const vote = (neighbours) => {
  const counts = new Map();
  neighbours.forEach(([i]) => counts.set(live.labelOf(i), (counts.get(live.labelOf(i)) ?? 0) + 1));
  const count = Math.max(...counts.values());
  return { count, label: [...counts.keys()].find((label) => counts.get(label) === count) };
};
const look = () => {
  const pixels = state.fit ? live.fit(pixelsOf()) : pixelsOf();
  const start = performance.now(), answer = {};
  for (const way of Object.keys(WAYS)) {
    const code = live.ways[way].code(pixels), neighbours = live.nearest(way, code, SHOWN);
    answer[way] = { code, neighbours, ...vote(neighbours) };
  }
  return { pixels, answer, milliseconds: performance.now() - start };
};
const show = () => {
  const { pixels, answer, milliseconds } = look();
  put(seen.getContext("2d"), pixels);
  const empty = !pixels.some((value) => value > 0);
  root.classList.toggle("empty", empty);
  if (empty) {
    said.textContent = "Draw an animal, or start with one of the test set.";
    facts.textContent = "";
    return paintMap();
  }
  const words = Object.entries(answer).map(([way, { neighbours, label, count }]) => {
    neighbours.forEach(([i, cosine], rank) => {
      const { picture, name, cosine: number } = found[way][rank];
      put(picture.getContext("2d"), live.image(i));
      name.textContent = classes[live.labelOf(i)];
      number.textContent = cosine.toFixed(2);
    });
    const name = classes[label];
    return `${way === "encoder" ? "the encoder" : "raw pixels"} like ${article(name)} ${name} (${count} of ${SHOWN} neighbours)`;
  });
  if (!state.trail) said.textContent = `It looks to ${words.join(", to ")}.`;
  facts.textContent = `Computed in ${milliseconds.toFixed(0)} ms.`;
  return paintMap(answer.encoder, pixels);
};
let waiting = false;
const later = () => { // once a frame is enough
  if (waiting || !live) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; show(); });
};

// The map: silhouettes where nothing is drawn yet, then the drawing.
const tinted = (pixels, colour) => {
  const canvas = thumbnail(), context = canvas.getContext("2d");
  const image = context.createImageData(SIDE, SIDE);
  const rgb = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  pixels.forEach((value, i) => image.data.set([...rgb, value], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
};
const makeMap = () => {
  const edges = [0, 1].map((axis) => {
    const values = live.points.map((point) => point[axis]);
    return [Math.min(...values), Math.max(...values)];
  });
  const { width, height, margin, thumb, apart } = MAP;
  const place = ([a, b]) => [
    margin + (a - edges[0][0]) / (edges[0][1] - edges[0][0]) * (width - 2 * margin),
    height - margin - (b - edges[1][0]) / (edges[1][1] - edges[1][0]) * (height - 2 * margin),
  ];
  const ground = make("canvas", { width: plane.width, height: plane.height });
  const context = ground.getContext("2d"), taken = [];
  context.scale(ratio, ratio);
  live.points.forEach((point, i) => {
    const [x, y] = place(point);
    if (taken.some(([u, v]) => Math.hypot(x - u, y - v) < apart)) return;
    taken.push([x, y]);
    context.drawImage(tinted(live.image(i), colours[live.labelOf(i)]), x - thumb / 2, y - thumb / 2, thumb, thumb);
  });
  return { place, ground, count: taken.length };
};
const paintMap = (answer, pixels) => {
  const context = plane.getContext("2d"), { place, ground } = live.map;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, plane.width, plane.height);
  context.drawImage(ground, 0, 0);
  if (!answer) return;
  context.scale(ratio, ratio);
  const clip = ([x, y]) => [Math.max(20, Math.min(MAP.width - 20, x)), Math.max(20, Math.min(MAP.height - 20, y))];
  context.strokeStyle = getComputedStyle(root).getPropertyValue("--right");
  context.lineWidth = 2;
  const [x, y] = clip(place(live.point(answer.code)));
  answer.neighbours.forEach(([i]) => {
    const [u, v] = place(live.points[i]);
    context.beginPath();
    context.arc(u, v, MAP.thumb / 2, 0, 2 * Math.PI);
    context.stroke();
  });
  const picture = thumbnail();
  put(picture.getContext("2d"), pixels);
  context.drawImage(picture, x - 18, y - 18, 36, 36);
  context.strokeRect(x - 18, y - 18, 36, 36);
  plane.setAttribute("aria-label", `Map of ${live.map.count} silhouettes by the encoder, with the drawing, ` +
    `framed, and its ${SHOWN} nearest, circled: ${answer.neighbours.map(([i]) => classes[live.labelOf(i)]).join(", ")}.`);
};

const open = ({ header, weights, rest }) => {
  const represent = makeEncoder(header, weights);
  live = { represent, ...makeGallery(header, weights, rest, represent, classes.length), labelOf: (i) => i % classes.length,
    fit: (pixels) => fit(pixels, header.longer) };
  live.map = makeMap();
  root.live = { ...live, look, show, state, changes: CHANGES, put: (pixels) => replace(pixels), pixels: pixelsOf };
  put(ink, live.example(data.first));
  look(); // the first time takes longer
  show();
  new MutationObserver(show).observe(document.documentElement, { attributeFilter: ["data-theme"] });
};

put(ink, new Uint8Array(PIXELS));
showCursor();
root.append(
  make("div", { class: "controls" }, begin, button("clear", () => clear()), button("undo", undo)),
  make("div", { class: "studio" },
    make("div", { class: "paper" },
      make("div", { class: "sheet" }, board, cursor),
      make("fieldset", {}, make("legend", {}, "tool"), tool("outline", "outline, filled"), tool("pencil", "pencil"), tool("eraser", "eraser")),
      make("div", { class: "controls" },
        make("label", {}, "width ", size, output),
        make("label", {}, fitter, " fit into the frame"))),
    make("div", { class: "answers" }, said, ...lists,
      make("p", { class: "facts" }, "What is compared: ", seen))),
  make("div", { class: "controls" }, "Change the drawing: ",
    ...Object.entries(CHANGES).map(([name, change]) => button(name, () => replace(change(pixelsOf()))))),
  facts, plane, key,
  make("p", { class: "facts" },
    `Weights and codes are rounded to 8 bits. On the ${data.errors.images.toLocaleString("en")} test images, the cosine ` +
    `of a code with that of the unrounded network is at least ${data.errors["least cosine"].toFixed(3)}, and the nearest ` +
    `silhouette is the same for ${(100 * data.errors["same nearest"]).toFixed(1)} %.`));
said.textContent = `Loading the model, ${data.size} MB.`;
await load(data.file);
open(await readModel(globalThis.fmkitEncoder));
