// make("button", {class: "wide", onclick: f}, "text", child): an element in one call.
const drawn = new Set(["svg", "g", "line", "path", "circle", "rect", "text"]);
const make = (name, attributes = {}, ...children) => {
  const element = drawn.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
};
// A labelled <select>; `options` are pairs of a value and what is shown of it.
const chooser = (label, options, value, onchange) =>
  make("label", {}, `${label} `, make("select", { onchange: (e) => onchange(e.target.value) },
    ...options.map(([key, text]) => make("option", { value: key, selected: key === value }, text))));
