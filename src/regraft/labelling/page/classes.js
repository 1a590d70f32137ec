// Classes: a key, a colour, and the bar from which one is chosen.

import { button, make } from "./dom.js";

const DIGITS = [..."1234567890"];
const LETTERS = [..."abcdefghijklopqrvwy"]; // without those that do something: m n s t u x z
const COLOURS = 12; // that the style knows

/** The key of each class: its own name where that is one character, else a digit, then letters; none after those. */
export function keysOf(classes) {
  const keys = new Map();
  const free = new Set([...DIGITS, ...LETTERS]);
  for (const name of classes) {
    if (free.has(name)) keys.set(name, name);
    free.delete(name);
  }
  for (const name of classes) {
    if (keys.has(name)) continue;
    const [next] = free;
    if (next !== undefined) keys.set(name, next);
    free.delete(next);
  }
  return keys;
}

/** The class that a pressed key stands for, with Shift or without; undefined for none. */
export function classOf(event, classes) {
  const key = event.shiftKey ? (/^Digit(\d)$/.exec(event.code)?.[1] ?? event.key.toLowerCase()) : event.key;
  for (const [name, own] of keysOf(classes)) if (own === key) return name;
  return undefined;
}

/** Give an element the colour of a class; none for what is no class. */
export function colour(element, name, classes) {
  const index = classes.indexOf(name);
  for (const old of [...element.classList]) if (/^c\d+$/.test(old)) element.classList.remove(old);
  if (index >= 0) element.classList.add(`c${index % COLOURS}`);
  return element;
}

/** A class as it is shown: its key and its name, in its colour. */
export function label(name, classes) {
  const key = keysOf(classes).get(name);
  return colour(make("span", { class: "label" }, key ? make("b", { text: key, "aria-hidden": "true" }) : null, make("span", { text: name })), name, classes);
}

/** The class that a typed name means: one that is there, whatever its capitals, or a new one. */
export function known(typed, classes) {
  const plain = (text) => text.trim().replace(/\s+/g, " ").toLowerCase();
  return classes.find((one) => plain(one) === plain(typed)) ?? typed.trim().replace(/\s+/g, " ");
}

/** Buttons for all classes and a field for a new one. `choose` is called with a name, and whether Shift was held. */
export function chooser(classes, choose, { prompt, placeholder = "new name" } = {}) {
  const keys = keysOf(classes);
  const buttons = classes.map((name) => colour(button(name, keys.get(name) ?? "", (event) => choose(name, event.shiftKey), { class: "class", "data-class": name }), name, classes));
  const field = make("input", {
    id: "name", type: "text", placeholder, "aria-label": placeholder, maxlength: 100, list: "names", autocomplete: "off", autocapitalize: "off", spellcheck: "false", enterkeyhint: "done",
  });
  const take = (event, withShift) => {
    event.preventDefault();
    const name = known(field.value, classes);
    if (!name) return;
    field.value = "";
    field.blur();
    choose(name, withShift);
  };
  field.addEventListener("keydown", (event) => (event.key === "Enter" && event.shiftKey ? take(event, true) : undefined));
  const form = make("form", { class: "name", onsubmit: (event) => take(event, false) }, field, make("datalist", { id: "names" }, ...classes.map((name) => make("option", { value: name }))), make("button", { class: "add", text: "OK", "aria-label": "Take this name" }), make("kbd", { text: "n", "aria-hidden": "true" }));
  return make("div", { class: "chooser scroll", role: "group", "aria-label": prompt }, make("span", { class: "prompt", text: prompt }), ...buttons, form);
}
