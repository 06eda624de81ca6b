// A batch in the hand: the views of a few images are vectors in the plane, which can be
// dragged. Two losses pull and push them. `root.live` has the functions, for tests.
const { images, views, columns, across, colours, rates } = data;
const B = images.length;
const MARK = 9, REACH = 15; // of a vector's end, in pixels: as drawn, and for a finger
const SIDE = 300, RADIUS = 112, ROOM = 138; // of a plane: its side, a vector of length 1, and the longest
const PACE = 50; // milliseconds a step
const AT_ONCE = 100; // steps, for those who want no motion
const LEAST = 0.05; // length of a vector
const RAD = Math.PI / 180;
const still = matchMedia("(prefers-reduced-motion: reduce)");

const partnerOf = (i) => (i + B) % (2 * B);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const length = (v) => Math.hypot(...v);
const times = (v, factor) => [v[0] * factor, v[1] * factor];
const unit = (v) => times(v, 1 / length(v));
const towards = (degrees) => [Math.cos(degrees * RAD), Math.sin(degrees * RAD)];
const softmax = (u) => {
  const largest = Math.max(...u);
  const e = u.map((x) => Math.exp(x - largest));
  const sum = e.reduce((a, b) => a + b);
  return { p: e.map((x) => x / sum), log: largest + Math.log(sum) };
};
// How each pair of vectors acts on the other, and the sum over all: the gradient.
const summed = (weights, z) => weights.map((row) => row.reduce(
  ([x, y], weight, j) => [x + weight * z[j][0], y + weight * z[j][1]], [0, 0]));

// The first B vectors are first views, the others second views, as in fmkit.losses.
// Returned are the terms of the images, the loss, its derivatives by the inner product of
// each pair, and its gradient.
const simclr = (v) => {
  const weights = v.map(() => v.map(() => 0)), terms = [];
  for (let i = 0; i < B; i++) {
    const s = v.slice(B).map((tilde) => dot(v[i], tilde));
    const { p, log } = softmax(s);
    terms.push(log - s[i]);
    p.forEach((share, j) => {
      weights[i][B + j] = weights[B + j][i] = share - (i === j ? 1 : 0);
    });
  }
  return { terms, loss: terms.reduce((a, b) => a + b), weights, gradient: summed(weights, v) };
};
const ntXent = (v, tau) => {
  const z = v.map(unit);
  const weights = v.map(() => v.map(() => 0)), terms = images.map(() => 0);
  for (let i = 0; i < 2 * B; i++) {
    const s = z.map((other, j) => (i === j ? -Infinity : dot(z[i], other) / tau));
    const { p, log } = softmax(s);
    terms[i % B] += (log - s[partnerOf(i)]) / 2; // of both views of an image the mean
    p.forEach((share, j) => {
      const weight = (share - (j === partnerOf(i) ? 1 : 0)) / (2 * B * tau);
      weights[i][j] += weight;
      weights[j][i] += weight;
    });
  }
  const gradient = summed(weights, z).map((g, i) => {
    const along = dot(g, z[i]); // a length changes nothing
    return [0, 1].map((axis) => (g[axis] - along * z[i][axis]) / length(v[i]));
  });
  return { terms, loss: terms.reduce((a, b) => a + b) / B, weights, gradient };
};

const state = { chosen: 0, tau: data.tau };
const nameOf = (i) => `${images[i % B]}, ${i < B ? "first" : "second"} view`;
const place = (i, row) => `background-image: url(${views}); ` +
  `background-position: ${100 * columns[i] / (across - 1)}% ${100 * row}%; ` +
  `background-size: ${100 * across}% 200%`;

// One plane: a loss, its vectors, and what can be done with them.
const makePlane = ({ title, about, compute, step, alike, sum, turns, knob }) => {
  const plane = { vectors: [], steps: 0, playing: 0, scale: RADIUS, dragging: false };
  const at = ([x, y]) => [SIDE / 2 + plane.scale * x, SIDE / 2 - plane.scale * y];
  const layer = () => make("g");
  const circle = make("circle", { class: "grid", cx: SIDE / 2, cy: SIDE / 2 });
  const [ties, spokes, arrows] = [layer(), layer(), layer()];
  const ends = Array.from({ length: 2 * B }, (_, i) => {
    const shape = i < B ? make("circle", { r: MARK }) :
      make("rect", { x: -MARK, y: -MARK, width: 2 * MARK, height: 2 * MARK, rx: 2 });
    const end = make("g", { class: "end", role: "slider", "aria-label": nameOf(i), "aria-valuemin": -180, "aria-valuemax": 180 },
      make("circle", { class: "reach", r: REACH }), shape, make("text", {}, String(i % B + 1)));
    end.style.setProperty("--own", `var(--own-${i % B})`);
    end.addEventListener("focus", () => { if (!plane.dragging) choose(i); });
    end.addEventListener("keydown", (event) => key(event, i));
    end.addEventListener("pointerdown", (event) => grab(event, i));
    return end;
  });
  const svg = make("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "group", "aria-label": `vectors, ${title}` },
    circle, ties, spokes, ...ends, arrows);
  const rows = images.map((name, i) => {
    const bar = make("span", { class: "bar" }), number = make("span", { class: "number" });
    bar.style.background = `var(--own-${i})`;
    const view = (row) => make("span", { class: "view", style: place(i, row) });
    return { bar, number, row: make("li", {}, make("span", {}, `${i + 1} `, view(0), view(1),
      make("span", { class: "visually-hidden" }, name)), make("span", { class: "track" }, bar, make("span", { class: "before" })), number) };
  });
  const loss = make("output", { class: "loss" });
  const count = make("span", { class: "steps" });
  const one = make("button", { type: "button", onclick: () => { pause(); walk(); show(); } }, "one step");
  const player = make("button", { type: "button", class: "go", onclick: () => (plane.playing ? pause() : play()) });

  const move = (i, v) => {
    const size = Math.max(LEAST, length(v));
    const turned = length(v) > 0 ? unit(v) : unit(plane.vectors[i]);
    plane.vectors[i] = turns ? turned : times(turned, size);
    const other = planes.find((one) => one !== plane);
    other.vectors[i] = times(turned, turns ? length(other.vectors[i]) : 1);
    planes.forEach((each) => { each.pause(); each.steps = 0; each.show(); });
  };
  const key = (event, i) => {
    const v = plane.vectors[i], fast = event.shiftKey ? 5 : 1;
    const turn = { ArrowLeft: 3, ArrowRight: -3 }[event.key];
    const grow = turns ? undefined : { ArrowUp: 0.1, ArrowDown: -0.1 }[event.key];
    const next = { PageDown: 1, PageUp: -1 }[event.key];
    if (turn === undefined && grow === undefined && next === undefined) return;
    event.preventDefault();
    if (next) ends[(i + next + 2 * B) % (2 * B)].focus();
    else if (turn) move(i, times(towards(Math.atan2(v[1], v[0]) / RAD + fast * turn), length(v)));
    else move(i, times(v, Math.max(LEAST, length(v) + fast * grow) / length(v)));
    if (!next) said.textContent = spoken(i);
  };
  const spoken = (i) => `${nameOf(i)}: ${valueOf(i)}. ${planes.map((each) => each.words()).join("; ")}.`;
  const valueOf = (i) => {
    const v = plane.vectors[i];
    return `direction ${Math.round(Math.atan2(v[1], v[0]) / RAD)}°${turns ? "" : `, length ${length(v).toFixed(2)}`}`;
  };
  const grab = (event, i) => {
    if (event.button > 0) return;
    event.preventDefault();
    const end = ends[i];
    plane.dragging = true; // so the scale stays
    end.setPointerCapture(event.pointerId);
    choose(i);
    end.focus({ preventScroll: true });
    const follow = ({ clientX, clientY }) => {
      const box = svg.getBoundingClientRect(), pixel = SIDE / box.width;
      const v = [(clientX - box.left) * pixel - SIDE / 2, SIDE / 2 - (clientY - box.top) * pixel];
      move(i, times(v, Math.min(1, ROOM / length(v)) / plane.scale));
    };
    const drop = () => {
      plane.dragging = false;
      end.removeEventListener("pointermove", follow);
      show();
    };
    end.addEventListener("pointermove", follow);
    end.addEventListener("lostpointercapture", drop, { once: true });
  };
  const walk = () => {
    plane.vectors = step(plane.vectors, compute(plane.vectors).gradient);
    plane.steps += 1;
  };
  const pause = () => { clearInterval(plane.playing); plane.playing = 0; label(); };
  const play = () => {
    if (still.matches) {
      for (let n = 0; n < AT_ONCE; n++) walk();
    } else {
      plane.playing = setInterval(() => { walk(); show(); }, PACE);
    }
    show();
  };
  const label = () => { player.textContent = plane.playing ? "pause" : still.matches ? `${AT_ONCE} steps` : "play"; };
  still.addEventListener("change", () => { pause(); });

  const line = (a, b, attributes) =>
    make("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1], ...attributes });
  const arrow = (tail, by) => {
    const size = length(by);
    if (size < 2) return []; // pixels
    const tip = [tail[0] + by[0], tail[1] + by[1]], [x, y] = unit(by);
    const long = Math.min(6, size), wide = 0.7 * long;
    const wing = (side) => `${tip[0] - long * x + side * wide * y} ${tip[1] - long * y - side * wide * x}`;
    return [line(tail, tip, { class: "arrow" }), make("path", { class: "head", d: `M${wing(1)} L${tip.join(" ")} L${wing(-1)} Z` })];
  };
  const show = () => {
    const { vectors } = plane, computed = compute(vectors), here = state.chosen;
    if (!plane.dragging) plane.scale = Math.min(RADIUS, ROOM / Math.max(...vectors.map(length)));
    circle.setAttribute("r", plane.scale);
    const most = Math.max(...computed.weights.flat().map(Math.abs), 1e-9);
    ties.replaceChildren(...vectors.flatMap((v, j) => {
      const weight = computed.weights[here][j];
      return j === here || weight === 0 ? [] : [line(at(vectors[here]), at(v), {
        class: j === partnerOf(here) ? "pull" : "push", "stroke-width": 8 * Math.abs(weight) / Math.max(most, alike.weight),
      })];
    }));
    spokes.replaceChildren(...vectors.map((v, i) => line([SIDE / 2, SIDE / 2], at(v), { class: "spoke", style: `--own: var(--own-${i % B})` })));
    arrows.replaceChildren(...vectors.flatMap((v, i) => {
      // Longer arrows are drawn shorter than they are, so that all have room
      const g = computed.gradient[i], size = length(g) / alike.arrow;
      const drawn = 45 * size / (1 + size) / Math.max(1e-9, length(g));
      const [x, y] = at(v), by = [-g[0] * drawn, g[1] * drawn];
      const out = length(by) > 0 ? times(unit(by), MARK) : [0, 0];
      return arrow([x + out[0], y + out[1]], by);
    }));
    ends.forEach((end, i) => {
      end.setAttribute("transform", `translate(${at(vectors[i]).map((x) => x.toFixed(1)).join(" ")})`);
      end.setAttribute("aria-valuenow", Math.round(Math.atan2(vectors[i][1], vectors[i][0]) / RAD));
      end.setAttribute("aria-valuetext", valueOf(i));
      end.setAttribute("tabindex", i === here ? 0 : -1);
      end.classList.toggle("chosen", i === here);
    });
    const widest = Math.max(1.5 * alike.term, ...computed.terms);
    rows.forEach(({ bar, number, row }, i) => {
      bar.style.width = `${100 * computed.terms[i] / widest}%`;
      number.textContent = computed.terms[i].toFixed(2);
      row.querySelector(".before").style.left = `${100 * alike.term / widest}%`;
    });
    loss.textContent = computed.loss.toFixed(3);
    count.textContent = `after ${plane.steps} step${plane.steps === 1 ? "" : "s"}`;
    label();
    if (!turns) showLength();
  };
  Object.assign(plane, {
    show, pause, walk, move,
    words: () => `${title} ${loss.textContent} nats`,
    element: make("section", { class: "side", "aria-label": title },
      make("p", {}, make("b", {}, title), ` (${about})`),
      make("div", { class: "controls" }, knob),
      svg,
      make("p", {}, `${sum} `, loss, " nats ", count),
      make("ul", { class: "terms", "aria-label": `terms of ${title}` }, ...rows.map(({ row }) => row)),
      make("div", { class: "controls" }, one, player)),
  });
  return plane;
};

const tauOut = make("output", {}, state.tau.toFixed(2));
const tau = make("input", {
  type: "range", min: Math.log(0.05), max: Math.log(2), step: 0.01, value: Math.log(state.tau),
  "aria-label": "temperature tau of NT-Xent", oninput: () => {
    state.tau = Math.exp(tau.value);
    tauOut.textContent = state.tau.toFixed(2);
    planes[1].show();
  },
});
const sizeOut = make("output", { class: "size" });
const size = make("input", {
  type: "range", min: 0.5, max: 4, step: 0.05, "aria-label": "length of all vectors in the loss of the notes", oninput: () => {
    planes[0].pause();
    planes[0].vectors = planes[0].vectors.map((v) => times(unit(v), Number(size.value)));
    planes[0].show();
  },
});
const planes = [
  makePlane({
    title: "Loss of the notes", about: "direction and length", knob: make("label", {}, "length ", size, sizeOut), compute: simclr, sum: "sum", turns: false,
    step: (v, g) => v.map((x, i) => [0, 1].map((axis) => x[axis] - rates.notes * g[i][axis])),
    alike: { term: Math.log(B), weight: 1, arrow: 1 },
  }),
  makePlane({
    title: "NT-Xent", about: "direction only", knob: make("label", {}, "τ ", tau, tauOut), compute: (v) => ntXent(v, state.tau), sum: "mean", turns: true,
    step: (v, g) => v.map((x, i) => unit([0, 1].map((axis) => x[axis] - rates.ntXent * state.tau * g[i][axis]))),
    alike: { term: Math.log(2 * B - 1), weight: 0.25, arrow: 0.5 },
  }),
];
const showAll = () => planes.forEach((plane) => plane.show());
const choose = (i) => { if (state.chosen !== i) { state.chosen = i; showAll(); } };

const starts = {
  alike: () => data.start.map(towards),
  anywhere: () => data.start.map(() => towards(360 * Math.random())),
  point: () => data.start.map(() => towards(90)),
};
const begin = chooser("start", [["alike", "all alike"], ["anywhere", "anywhere"], ["point", "at one point"]],
  "alike", () => restart());
const restart = () => {
  const vectors = starts[begin.querySelector("select").value]();
  planes.forEach((plane) => { plane.pause(); plane.vectors = [...vectors]; plane.steps = 0; });
  said.textContent = "";
  showAll();
};
const showLength = () => {
  const mean = planes[0].vectors.reduce((sum, v) => sum + length(v), 0) / (2 * B);
  size.value = mean;
  sizeOut.textContent = `${mean.toFixed(2)}, as τ = ${(mean ** -2).toFixed(2)}`;
};
const said = make("p", { class: "spoken", role: "status" });

root.append(
  make("div", { class: "controls" }, begin, make("button", { type: "button", onclick: () => restart() }, "start again")),
  make("div", { class: "sides" }, ...planes.map((plane) => plane.element)),
  make("p", { class: "facts" }, "Drag a vector, or turn it with ← → and lengthen it with ↑ ↓; Page Down chooses the next. " +
    "A circle and a square of one number are the two views of one image. An arrow points down the gradient. The chosen vector " +
    "is pulled to its partner (solid) and pushed from other images (dashed), and a wider line means more. The mark in a bar " +
    "is the term of vectors that are all equal."),
  said);
images.forEach((_, i) => root.style.setProperty(`--own-${i}`, colours[i]));
restart();
// Nothing moves where nobody looks.
new IntersectionObserver(([entry]) => {
  if (!entry.isIntersecting) planes.forEach((plane) => plane.pause());
}).observe(root);
root.live = { simclr, ntXent, planes, state };
