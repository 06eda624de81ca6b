// Accuracy against the number of labels or examples, with lines to choose.
const names = Object.keys(data);
const state = { family: names[0], one: {}, on: {} };
for (const [name, family] of Object.entries(data)) {
  state.one[name] = family.one.values[0];
  state.on[name] = family.many.map((kind) => new Set(kind.first));
}
const dashes = ["", "7 4", "2 4", "10 3 2 3", "1 7"];
const [W, H, left, bottom, top, right] = [640, 390, 60, 50, 30, 12];

const controls = make("div", { class: "controls" });
const figure = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
const key = make("ul", { class: "key" });
const said = make("p", { "aria-live": "polite", class: "said" });

// What is shown for a key of the records.
const word = (value) => data[state.family].words[value];

// The lines that are switched on: their names, their points, their looks.
const lines = () => {
  const family = data[state.family];
  return family.lines.filter(({ of, one }) =>
    (one === null || one === state.one[state.family]) &&
    of.every((value, i) => state.on[state.family][i].has(value)),
  ).map((line) => ({
    ...line,
    colour: family.colours[line.of[0]],
    dash: dashes[line.of.length > 1 ? family.many[1].values.indexOf(line.of[1]) : 0],
  }));
};

const draw = () => {
  const family = data[state.family];
  const shown = lines();
  const place = family.x.map((value, i) =>
    left + 14 + (i * (W - left - right - 28)) / Math.max(1, family.x.length - 1));
  const x = (value) => place[family.x.indexOf(value)];
  const y = (value) => H - bottom - value * (H - bottom - top);
  const grid = [0, 0.25, 0.5, 0.75, 1].flatMap((value) => [
    make("line", { x1: left, x2: W - right, y1: y(value), y2: y(value), class: "grid" }),
    make("text", { x: left - 8, y: y(value) + 5, "text-anchor": "end" }, value.toFixed(2)),
  ]);
  const axis = family.x.map((value) =>
    make("text", { x: x(value), y: H - bottom + 20, "text-anchor": "middle" }, value));
  const chance = family.chance[state.one[state.family]] ?? family.chance[""];
  const level = chance === undefined ? [] : [
    make("line", { x1: left, x2: W - right, y1: y(chance), y2: y(chance), class: "chance" }),
    make("text", { x: W - right, y: y(chance) - 5, "text-anchor": "end" }, "chance"),
  ];
  const curves = shown.map(({ of, points, colour, dash }) => make("g", { stroke: colour, fill: colour },
    make("path", {
      d: points.map(([k, p], i) => `${i ? "L" : "M"}${x(k)} ${y(p)}`).join(""),
      fill: "none", "stroke-width": 2.5, "stroke-dasharray": dash,
    }),
    ...points.map(([k, , low, high]) =>
      make("line", { x1: x(k), x2: x(k), y1: y(low), y2: y(high), "stroke-width": 1.5 })),
    ...points.map(([k, p]) => make("circle", { cx: x(k), cy: y(p), r: 4 }))));
  figure.replaceChildren(...grid, ...axis, ...level,
    make("text", { x: 4, y: 14 }, "accuracy"),
    make("text", { x: (left + W) / 2, y: H - 6, "text-anchor": "middle" }, family.xlabel), ...curves);
  const text = ({ of, points }) => `${of.map(word).join(", ")}: ` +
    points.map(([k, p]) => `${p.toFixed(2)} at ${k}`).join(", ");
  figure.setAttribute("aria-label",
    `Accuracy against ${family.xlabel}. ${shown.map(text).join("; ")}.`);
  key.replaceChildren(...shown.map(({ of, points, colour, dash }) => make("li", {},
    make("svg", { viewBox: "0 0 34 10", class: "sample", "aria-hidden": "true" },
      make("line", { x1: 0, x2: 34, y1: 5, y2: 5, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash })),
    `${of.map(word).join(", ")}: `, make("b", {}, points.at(-1)[1].toFixed(2)), ` at ${points.at(-1)[0]}`)));
  said.textContent = shown.length ? family.note : "No line is switched on, or none was run for this choice.";
};

const show = () => {
  const family = data[state.family];
  const boxes = family.many.map((kind, i) => make("fieldset", {}, make("legend", {}, kind.name),
    ...kind.values.map((value) => make("label", {}, make("input", {
      type: "checkbox", checked: state.on[state.family][i].has(value),
      onchange: (event) => {
        state.on[state.family][i][event.target.checked ? "add" : "delete"](value);
        draw();
      },
    }), ` ${word(value)} `))));
  const one = family.one.values.length > 1 ? [chooser(family.one.name,
    family.one.values.map((value) => [value, word(value)]), state.one[state.family],
    (value) => { state.one[state.family] = value; draw(); })] : [];
  controls.replaceChildren(families, ...one, ...boxes);
  draw();
};
const families = chooser("task", names.map((name) => [name, name]), state.family,
  (value) => { state.family = value; show(); });

root.append(controls, figure, key, said);
show();
