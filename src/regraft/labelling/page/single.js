// One photo at a time, as large as it can be: questions, and photos drawn at random to measure with.

import { button, make, percent } from "./dom.js";
import { chooser, classOf, keysOf, label } from "./classes.js";
import { address, loaded, thumb } from "./photos.js";

const WORDS = {
  questions: { hint: "The model learns most from photos like this one.", empty: "There are no questions." },
  audit: { hint: "Drawn at random, to measure how good the model is. What it thinks is not shown.", empty: "All photos that were drawn at random are answered." },
};

export class Single {
  /**
   * @param kind of its photos: questions or audit.
   * @param app what all screens share.
   */
  constructor(kind, app) {
    Object.assign(this, { kind, app, page: null, cursor: 0, done: new Set(), out: new Set() });
  }

  get current() {
    return this.page?.cards[this.cursor] ?? null;
  }

  async take(page) {
    await loaded(page.cards.slice(0, 1).map((card) => card.photo));
    Object.assign(this, { page, cursor: 0, done: new Set(), out: new Set() });
  }

  show(main, footer) {
    const { app, page } = this;
    if (!page.cards.length) return app.showEmpty(WORDS[this.kind].empty);
    this.picture = make("img", { class: "large", alt: "", onclick: () => app.zoom() });
    this.note = make("p", { class: "hint" });
    this.strip = make("ol", { class: "strip scroll", "aria-label": "Photos of this page" }, ...page.cards.map((card, index) => {
      const one = make("button", { type: "button", tabindex: "-1", "aria-label": `Photo ${index + 1}`, onclick: () => this.put(index) });
      one.append(thumb(card.photo));
      return make("li", { "data-photo": card.photo }, one);
    }));
    const ask = make("h1", { text: "What is this?" });
    this.accept = this.kind === "audit" ? null : make("button", { type: "button", class: "accept", onclick: () => this.agree() });
    main.replaceChildren(make("div", { class: "question" }, make("div", {}, ask, this.note), make("p", { class: "place" })), make("div", { class: "stage" }, this.picture), this.strip);
    this.place = main.querySelector(".place");
    footer.replaceChildren(
      ...(this.accept ? [this.accept] : []),
      chooser(app.classes, (name) => this.choose(name), { prompt: "This is", placeholder: "another name" }),
      make("div", { class: "more", role: "group", "aria-label": "This photo" },
        button("I do not know", "⌫", () => this.leave()), button("Set aside", "x", () => this.setAside(), { title: "Not a photo of this task" }), button("Zoom", "z", () => app.zoom()),
        this.kind === "audit" ? button("Enough for now", "", () => app.go("progress")) : null),
    );
    footer.hidden = false;
    this.put(this.cursor);
  }

  put(index) {
    this.cursor = Math.min(Math.max(index, 0), this.page.cards.length - 1);
    const card = this.current;
    this.picture.src = address(card.photo, "screen");
    this.picture.alt = card.name;
    this.place.textContent = `${this.cursor + 1} of ${this.page.cards.length}`;
    this.note.replaceChildren(...this.words(card));
    if (this.accept) this.accept.replaceChildren(...this.acceptWords(card), make("kbd", { text: "Enter", "aria-hidden": "true" }));
    [...this.strip.children].forEach((item, at) => {
      const one = this.page.cards[at];
      item.toggleAttribute("data-cursor", at === this.cursor);
      item.classList.toggle("done", this.done.has(one.photo));
      item.classList.toggle("out", this.out.has(one.photo));
    });
    this.strip.children[this.cursor].scrollIntoView({ block: "nearest", inline: "nearest" });
    const next = this.page.cards[this.cursor + 1];
    if (next) new Image().src = address(next.photo, "screen");
  }

  /** Say what is known of a photo. */
  words(card) {
    const { classes } = this.app;
    if (card.is_set_aside) return ["You set it aside."];
    if (this.done.has(card.photo)) return ["You said ", label(card.label, classes), ". Another answer replaces it."];
    if (!card.guess || this.kind === "audit") return [WORDS[this.kind].hint];
    return [WORDS.questions.hint];
  }

  acceptWords(card) {
    if (!card.guess || this.done.has(card.photo)) return ["Next photo"];
    return [`Yes: ${card.guess} `, make("small", { text: percent(card.probability) })];
  }

  /** Say what the model thinks; go on where there is nothing to agree to. */
  agree() {
    const { guess, photo } = this.current;
    return guess && !this.done.has(photo) ? this.choose(guess) : this.forward();
  }

  leave() {
    this.out.add(this.current.photo);
    this.app.leftOut.add(this.current.photo);
    return this.forward();
  }

  setAside() {
    return this.choose(null, true);
  }

  async choose(name, set_aside = false) {
    const card = this.current;
    const isSent = await this.app.busy(async () => {
      if (name !== null) await this.app.addClass(name, this.page);
      await this.app.answer([{ photo: card.photo, label: name, set_aside }], this.page, this.kind === "audit");
      Object.assign(card, { label: name, is_set_aside: set_aside });
      this.done.add(card.photo);
      this.out.delete(card.photo);
      this.app.say(set_aside ? "Set aside." : `${name}. Saved.`);
      return true;
    });
    if (isSent) await this.forward();
  }

  /** Go on to the next photo that has no answer, or to the next page. */
  forward() {
    const isOpen = (card) => !this.done.has(card.photo) && !this.out.has(card.photo);
    const later = this.page.cards.findIndex((card, index) => index > this.cursor && isOpen(card));
    const next = later >= 0 ? later : this.page.cards.findIndex(isOpen);
    return next >= 0 ? this.put(next) : this.app.turn();
  }

  update() {
    this.put(this.cursor);
  }

  fit() {}

  refresh(cards, { takenBack = false } = {}) {
    const here = new Map(this.page.cards.map((card, index) => [card.photo, index]));
    for (const card of cards.filter((one) => here.has(one.photo))) {
      const old = this.page.cards[here.get(card.photo)];
      const isChanged = old.label !== card.label || old.is_set_aside !== card.is_set_aside;
      Object.assign(old, { label: card.label, is_set_aside: card.is_set_aside });
      if (takenBack) {
        this.done.delete(card.photo);
        this.cursor = here.get(card.photo);
      } else if (isChanged) this.done.add(card.photo);
    }
    return cards.every((card) => here.has(card.photo));
  }

  key(event) {
    const acts = {
      ArrowLeft: () => this.put(this.cursor - 1), ArrowRight: () => this.put(this.cursor + 1), Backspace: () => this.leave(), Delete: () => this.leave(), x: () => this.setAside(),
      Enter: () => this.agree(),
    };
    if (this.kind === "audit") delete acts.Enter; // there is no guess to agree to
    const name = classOf(event, this.app.classes);
    if (event.key in acts) return acts[event.key]();
    return name === undefined ? false : this.choose(name);
  }

  get legend() {
    const keys = [...keysOf(this.app.classes)].slice(0, 3).map(([, key]) => key).join(" ") || "1 2 3";
    const agree = this.kind === "audit" ? [] : [["Enter", "agree with the guess"]];
    return [[keys, "say what it is"], ["n", "type another name"], ...agree, ["← →", "another photo"], ["⌫", "I do not know: leave it for later"], ["x", "set it aside: not a photo of this task"], ["z", "zoom"]];
  }
}
