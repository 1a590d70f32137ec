// Elements. Text from files, names and people reaches the page as text alone: nothing here writes HTML.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** Make an element; `class`, `text`, handlers such as `onclick`, and attributes. Children may be null. */
export function make(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

export function draw(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;

/** A button that shows its key. */
export function button(text, key, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, text, key ? make("kbd", { text: key, "aria-hidden": "true" }) : null);
}
