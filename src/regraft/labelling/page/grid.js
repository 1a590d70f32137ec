// Pages of photos that are answered together: groups, guesses and doubts.

import { button, count, make, percent } from "./dom.js";
import { chooser, classOf, colour, keysOf, label } from "./classes.js";
import { aspect, loaded, thumb } from "./photos.js";

const GAP = 10; // pixels between cards
const CAPTION = 30; // pixels under a photo
const LEAST_WIDTH = 132; // pixels of a card
const MOST_WIDTH = 420;

const isTouched = matchMedia("(hover: none) and (pointer: coarse)").matches;

const WORDS = {
  groups: {
    hint: `They look alike. ${isTouched ? "Tap" : "Click"} what does not belong, then say what the others are.`,
    empty: "No groups are left.",
  },
  guesses: {
    hint: `${isTouched ? "Tap" : "Point at"} a photo that is something else, and say what it is.`,
    empty: "There is nothing to guess.",
  },
  doubts: {
    hint: "The model, which learned from all the others, does not believe these. Put right what is wrong.",
    empty: "The model believes every label.",
  },
};

export class Grid {
  /**
   * @param kind of its pages: groups, guesses or doubts.
   * @param app what all screens share.
   */
  constructor(kind, app) {
    Object.assign(this, { kind, app, page: null, cursor: 0, done: new Set(), out: new Set() });
  }

  get title() {
    const { suggestion } = this.page;
    if (this.kind === "doubts") return ["Are these labels right?"];
    if (suggestion) return ["Are all of these ", label(suggestion, this.app.classes), "?"];
    return [this.kind === "groups" ? "What are these?" : "Are all of these right?"];
  }

  get hint() {
    const isMixed = this.kind === "guesses" && !this.page.suggestion && this.page.left > 0; // else taken back
    return isMixed ? `The last few of several classes. ${WORDS.guesses.hint}` : WORDS[this.kind].hint;
  }

  thought(card) {
    return this.kind === "doubts" ? card.label : (this.page.suggestion ?? (this.kind === "groups" ? null : card.guess));
  }

  get hasCaptions() {
    return this.kind !== "groups" || this.page.suggestion !== null;
  }

  get open() {
    return this.page.cards.filter((card) => !this.done.has(card.photo) && !this.out.has(card.photo));
  }

  get current() {
    return this.page?.cards[this.cursor] ?? null;
  }

  async take(page) {
    await loaded(page.cards.map((card) => card.photo));
    Object.assign(this, { page, cursor: 0, done: new Set(), out: new Set() });
  }

  show(main, footer) {
    const { app, page } = this;
    if (!page.cards.length) return app.showEmpty(WORDS[this.kind].empty);
    this.list = make("ul", { class: this.hasCaptions ? "cards" : "cards bare", "aria-label": "Photos" }, ...page.cards.map((card, index) => this.card(card, index)));
    main.replaceChildren(
      make("div", { class: "question" }, make("div", {}, make("h1", {}, ...this.title), make("p", { class: "hint", text: this.hint })), make("div", { class: "beside" }, make("span", { id: "next" }), this.sizes())),
      this.list,
    );
    footer.replaceChildren(
      (this.accept = this.acceptButton()),
      chooser(app.classes, (name, isAlone) => this.choose(name, isAlone), {
        prompt: this.kind === "groups" ? "They are" : "Marked photo:",
        placeholder: this.kind === "groups" ? "type a name" : "another name",
      }),
      make("div", { class: "more", role: "group", "aria-label": "The marked photo" },
        button(this.kind === "groups" ? "Take out" : "Later", "⌫", () => this.toggle(this.current)),
        button("Set aside", "x", () => this.setAside(), { title: "Not a photo of this task" }),
        button("Zoom", "z", () => app.zoom()),
        this.kind === "groups" ? button("Another group", "s", () => this.skip()) : null),
    );
    footer.hidden = false;
    this.fit();
    this.update();
    this.put(this.underMouse() ?? this.cursor, { focus: app.mayFocus() });
    if (this.kind === "groups" && !app.classes.length && !isTouched) app.focusName(); // a keyboard on the screen hides photos
  }

  sizes() {
    const size = (text, key, name) => make("button", { type: "button", "aria-label": name, title: `${name}: ${key}`, onclick: () => this.app.resize(key), text });
    return make("div", { class: "sizes", role: "group", "aria-label": "Size of photos" }, size("−", "-", "Smaller photos, more on a page"), size("+", "+", "Larger photos, fewer on a page"));
  }

  acceptButton() {
    return make("button", { type: "button", class: "accept", onclick: () => this.acceptAll() }, make("span"), make("kbd", { text: "Enter", "aria-hidden": "true" }));
  }

  card(card, index) {
    const shown = make("button", { type: "button", class: "photo", tabindex: "-1", onclick: () => this.click(index), ondblclick: () => this.app.zoom() });
    shown.append(thumb(card.photo));
    const item = make("li", { class: "card", "data-photo": card.photo, title: card.name, onpointermove: (event) => this.hover(event, index) },
      shown, make("p", { class: "caption" }),
      make("button", { type: "button", class: "look", tabindex: "-1", "aria-label": `Zoom ${card.name}`, text: "⤢", onclick: () => (this.put(index), this.app.zoom()) }));
    return item;
  }

  /** Show what each photo is taken for, or was said to be. */
  update() {
    const { app, page } = this;
    page.cards.forEach((card, index) => {
      const item = this.list.children[index];
      const isDone = this.done.has(card.photo);
      const isOut = this.out.has(card.photo);
      item.className = "card";
      item.classList.toggle("done", isDone);
      item.classList.toggle("out", isOut);
      item.classList.toggle("aside", card.is_set_aside);
      colour(item, isOut ? null : (card.label ?? this.thought(card)), app.classes);
      item.querySelector(".caption").replaceChildren(...this.caption(card, isDone, isOut));
      item.querySelector(".photo").setAttribute("aria-label", `${card.name}: ${item.querySelector(".caption").textContent}`);
    });
    const left = this.open;
    const [words] = this.accept.children;
    words.replaceChildren(...this.acceptWords(left));
    this.accept.hidden = left.length > 0 && this.kind === "groups" && !page.suggestion; // it needs a name
  }

  caption(card, isDone, isOut) {
    const { classes } = this.app;
    if (isOut) return [make("span", { text: this.kind === "groups" ? "taken out" : "for later" })];
    if (card.is_set_aside) return [make("span", { text: "set aside" })];
    if (isDone) return [make("span", { "aria-hidden": "true", text: "✓" }), label(card.label, classes)];
    if (this.kind === "doubts") {
      const line = (said, name, ...rest) => make("span", { class: "line" }, make("small", { text: said }), label(name, classes), ...rest);
      return [line("labelled", card.label), line("looks like", card.guess, make("small", { class: "sure", text: percent(card.probability) }))];
    }
    const thought = this.thought(card);
    if (!thought) return [];
    const sure = card.probability === null || card.guess !== thought ? null : make("small", { class: "sure", text: percent(card.probability) });
    return [label(thought, classes), sure].filter(Boolean);
  }

  acceptWords(left) {
    const { suggestion, cards } = this.page;
    if (!left.length) return ["Next page"];
    if (this.kind === "doubts") return [left.length === cards.length ? "All labels are right" : `The other ${left.length} are right`];
    const many = left.length === cards.length ? `Yes, all ${left.length}` : `Yes, the other ${left.length}`;
    return [left.length === 1 ? "Yes, this one" : many];
  }

  /** Choose rows so that the page fits the window with photos as large as they can be; else it is scrolled. */
  fit() {
    if (!this.list?.isConnected) return;
    const shape = aspect(this.page.cards.map((card) => card.photo));
    const width = this.list.clientWidth;
    const height = this.app.main.clientHeight - (this.list.offsetTop - this.app.main.offsetTop) - 14;
    const caption = this.hasCaptions ? CAPTION * (this.kind === "doubts" ? 1.9 : 1) : 0;
    const { columns, side, rows } = arranged(this.page.cards.length, { width, height, caption, shape });
    const room = (height - GAP * (rows - 1)) / rows - caption; // upright photos use what is left below
    this.columns = columns;
    this.list.style.setProperty("--columns", columns);
    this.list.style.setProperty("--shape", Math.min(shape, Math.max(side / room, shape * 0.8)));
    this.list.style.setProperty("--most", `${side}px`);
  }

  put(index, { focus = true } = {}) {
    if (!this.page.cards.length) return;
    const old = this.list.children[this.cursor]?.querySelector(".photo");
    old?.setAttribute("tabindex", "-1");
    this.list.children[this.cursor]?.removeAttribute("data-cursor");
    this.cursor = Math.min(Math.max(index, 0), this.page.cards.length - 1);
    const item = this.list.children[this.cursor];
    item.setAttribute("data-cursor", "");
    const shown = item.querySelector(".photo");
    shown.setAttribute("tabindex", "0");
    if (focus) shown.focus({ preventScroll: true });
    if (focus) item.scrollIntoView({ block: "nearest" });
  }

  /** The photo on which the mouse rests, if it was what pointed last; no event tells of a page that comes under it. */
  underMouse() {
    const at = this.app.pointer && document.elementFromPoint(...this.app.pointer)?.closest(".card");
    return at ? [...this.list.children].indexOf(at) : undefined;
  }

  /** The wheel has brought another photo under the mouse, which points at it now. */
  follow() {
    const index = this.underMouse();
    if (index >= 0) this.put(index, { focus: false });
  }

  hover(event, index) {
    const [x, y] = this.app.pointer ?? [];
    const isMoved = event.clientX !== x || event.clientY !== y; // else the page moved, not the mouse
    if (event.pointerType !== "mouse" || index === this.cursor || !isMoved) return;
    this.put(index, { focus: this.app.mayFocus() });
  }

  click(index) {
    this.put(index);
    if (this.kind === "groups") this.toggle(this.current);
  }

  toggle(card) {
    if (!card || this.done.has(card.photo)) return;
    if (!this.out.delete(card.photo)) this.out.add(card.photo);
    this.update();
  }

  skip() {
    for (const card of this.open) this.out.add(card.photo);
    return this.turn();
  }

  setAside() {
    return this.answer([this.current], null, true);
  }

  /** A class was chosen: for a group, of all that is left in it; else, or with Shift, of the photo under the cursor. */
  async choose(name, isAlone = false) {
    if (isAlone || this.kind !== "groups" || !this.open.length) return this.answer([this.current], name);
    if (await this.answer(this.open, name)) await this.turn();
  }

  async acceptAll() {
    const { open } = this;
    if (this.accept.hidden) return this.app.focusName();
    if (open.length && !(await this.app.busy(() => this.send(open.map((card) => ({ photo: card.photo, label: this.thought(card) })))))) return;
    await this.turn();
  }

  answer(cards, name, set_aside = false) {
    return this.app.busy(async () => {
      if (name !== null) await this.app.addClass(name, this.page);
      return this.send(cards.map((card) => ({ photo: card.photo, label: name, set_aside })));
    });
  }

  async send(answers) {
    await this.app.answer(answers, this.page);
    for (const one of answers) {
      const card = this.page.cards.find((card) => card.photo === one.photo);
      Object.assign(card, { label: one.label ?? null, is_set_aside: Boolean(one.set_aside) });
      this.done.add(one.photo);
      this.out.delete(one.photo);
    }
    this.update();
    this.app.say(said(answers));
    return true;
  }

  /** Go on to the next page; what was left out stays away for now. */
  turn() {
    for (const photo of this.out) this.app.leftOut.add(photo);
    return this.app.turn();
  }

  /** Take over what was said elsewhere, or taken back. Returns whether all these photos are on this page. */
  refresh(cards, { takenBack = false } = {}) {
    const here = new Map(this.page.cards.map((card) => [card.photo, card]));
    for (const card of cards.filter((one) => here.has(one.photo))) {
      const old = here.get(card.photo);
      const isChanged = old.label !== card.label || old.is_set_aside !== card.is_set_aside;
      Object.assign(old, { label: card.label, is_set_aside: card.is_set_aside });
      if (takenBack) this.done.delete(card.photo);
      else if (isChanged) this.done.add(card.photo);
    }
    return cards.every((card) => here.has(card.photo));
  }

  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key in moves) {
      this.app.pointer = null;
      return this.put(this.cursor + moves[event.key]);
    }
    const acts = {
      Enter: () => this.acceptAll(), x: () => this.setAside(), Backspace: () => this.toggle(this.current), Delete: () => this.toggle(this.current),
      ...(this.kind === "groups" ? { s: () => this.skip() } : {}),
    };
    const name = classOf(event, this.app.classes);
    if (event.key in acts) return acts[event.key]();
    return name === undefined ? false : this.choose(name, event.shiftKey);
  }

  get legend() {
    const common = [["← ↑ → ↓", "mark a photo; the mouse does too"], ["z", "zoom, also Space or a double click"], ["x", "set it aside: not a photo of this task"], ["+ -", "larger photos, smaller ones"]];
    const keys = [...keysOf(this.app.classes)].slice(0, 3).map(([, key]) => key).join(" ") || "1 2 3";
    if (this.kind === "groups") {
      return [[keys, "say what the group is"], [`Shift ${keys}`, "say what the marked photo is"], ["n", "type a name; Shift Enter for the marked photo alone"], ["⌫", "take the marked photo out; a click does too"], ["s", "another group"], ...common];
    }
    return [["Enter", this.kind === "doubts" ? "the labels are right" : "accept the page"], [keys, "say what the marked photo is"], ["n", "type another name"], ["⌫", "leave the marked photo for later"], ...common];
  }
}

/** The arrangement with the widest cards that fits; two or more columns of cards that are wide enough where none does. */
function arranged(number, { width, height, caption, shape }) {
  const all = Array.from({ length: number }, (_, index) => {
    const rows = index + 1;
    const columns = Math.ceil(number / rows);
    const side = Math.min((width - GAP * (columns - 1)) / columns, ((height - GAP * (rows - 1)) / rows - caption) * shape, MOST_WIDTH);
    return { columns, rows, side };
  });
  const best = all.reduce((one, other) => (other.side > one.side ? other : one));
  if (best.side >= LEAST_WIDTH) return best;
  const columns = Math.max(2, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
  return { columns, rows: Math.ceil(number / columns), side: (width - GAP * (columns - 1)) / columns };
}

function said(answers) {
  const [first] = answers;
  if (first.set_aside) return "Set aside.";
  const names = new Set(answers.map((one) => one.label));
  return `${count(answers.length, "photo")}: ${[...names].join(", ")}. Saved.`;
}
