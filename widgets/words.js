// The next word, token by token: `data` has for each prompt a tree of recorded places.
const prompts = Object.keys(data);
const state = { prompt: prompts[0], path: [] };
const visible = (text) => text.replace(/\n/g, "↵").replace(/^ | $/g, "␣");
const place = () => state.path.reduce((node, token) => node?.[token]?.[1], data[state.prompt]);
const chosen = () => state.path.reduce(
  ([node, all], token) => [node[token][1], [...all, node[token][0]]], [data[state.prompt], []])[1];

const select = chooser("prompt", prompts.map((text) => [text, text.replace(/\n/g, " ↵ ")]),
  state.prompt, (value) => { state.prompt = value; state.path = []; show(); });
const text = make("p", { class: "text" });
const list = make("ol", { class: "tokens" });
const said = make("p", { "aria-live": "polite", class: "said" });
const go = (path) => {
  state.path = path;
  show();
  (list.querySelector("button") ?? restart).focus({ preventScroll: true });
};
const restart = make("button", { type: "button", onclick: () => go([]) }, "start again");

const show = () => {
  const here = place();
  const all = chosen();
  text.replaceChildren(make("span", { class: "prompt" }, state.prompt),
    ...state.path.map((token, t) => make("button", {
      type: "button", title: "go back to here", "aria-label": `go back to before ${visible(token)}`,
      onclick: () => go(state.path.slice(0, t)),
    }, visible(token))));
  const tokens = Object.entries(here ?? {}).sort((a, b) => b[1][0] - a[1][0]);
  const rest = 1 - tokens.reduce((sum, [, [p]]) => sum + p, 0);
  list.replaceChildren(...tokens.map(([token, [p]]) => make("li", {},
    make("button", { type: "button", onclick: () => go([...state.path, token]) },
      make("span", { class: "token" }, visible(token)),
      make("span", { class: "track" }, make("span", { class: "bar", style: `width: ${100 * p}%` })),
      make("span", { class: "number" }, p.toFixed(3))))),
    ...(tokens.length ? [make("li", { class: "rest" },
      make("span", { class: "token" }, "all others"),
      make("span", { class: "track" }, make("span", { class: "bar", style: `width: ${100 * rest}%` })),
      make("span", { class: "number" }, rest.toFixed(3)))] : []));
  const p = all.reduce((product, x) => product * x, 1);
  const what = all.length
    ? `${all.length} token${all.length > 1 ? "s" : ""} chosen, together with probability ` +
      `${p < 0.0005 ? p.toExponential(1) : p.toFixed(3)}: ${(-Math.log(p)).toFixed(2)} nats.`
    : "Choose a token: it is written down, and the model is asked again.";
  said.textContent = here ? what : `${what} The record goes no farther here; go back, or start again.`;
};

root.append(make("div", { class: "controls" }, select, restart), text, list, said);
show();
