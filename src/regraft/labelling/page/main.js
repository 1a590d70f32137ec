// The page: which screen is shown, which key does what, what is said of errors and of other tabs.

import { Failure, enter, getCards, getPage, getStatus, postAnswers, postClass, postUndo } from "./api.js";
import { button, count, find, make } from "./dom.js";
import { label } from "./classes.js";
import { Grid } from "./grid.js";
import { address, fetchAhead } from "./photos.js";
import { Progress } from "./progress.js";
import { Single } from "./single.js";

const SIZES = { groups: 24, guesses: 24, doubts: 12, questions: 12, audit: 12 };
const SCALES = [0.25, 0.5, 1, 2]; // of a page's number of photos
const ORDER = ["groups", "guesses", "questions", "doubts", "progress"];
const NAMES = { groups: "Groups", guesses: "Guesses", questions: "Questions", doubts: "Doubts", progress: "Progress", audit: "photos drawn at random" };
const REMEMBERED = 200; // pages that undoing can show again
const WORTH_MEASURING = 60; // labels
const WAIT_MS = 20; // for what is under way
const SOON_MS = 800; // until the state is asked for again, while something is under way
const LATER_MS = 3000;

const app = {
  main: find("screen"), footer: find("footer"), status: null, screen: null, screens: {},
  leftOut: new Set(), history: [], isBusy: false, isEmpty: false, pointer: null, isWheeled: false, turns: 0, scale: 2,

  get classes() {
    return this.status?.classes ?? [];
  },

  /** Do one thing at a time; what goes wrong is told. Returns what it returned, false where it did not happen. */
  async busy(work) {
    if (this.isBusy) return false;
    this.isBusy = true;
    try {
      const result = await work();
      return result ?? true;
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      this.alert(failure.message);
      return false;
    } finally {
      this.isBusy = false;
    }
  },

  /** Send answers about a page; on return they are kept. */
  async answer(answers, page, isAudit = false) {
    try {
      const { version, status } = await postAnswers(answers, page.version, isAudit);
      await this.moved(version, page);
      this.know(status);
    } catch (failure) {
      if (failure.status === 409) await this.catchUp(page, (await getStatus()).version);
      throw failure;
    }
    this.hideAlert();
  },

  /** Take note of the version after a call of ours; where others came in between, look at what they said. */
  async moved(version, page) {
    if (version > page.version + 1) await this.catchUp(page, version);
    page.version = version;
  },

  /** Show on the page what was said elsewhere. */
  async catchUp(page, version) {
    const cards = await getCards(page.cards.map((card) => card.photo));
    if (this.screen.page !== page) return; // another one is shown by now
    this.screen.refresh(cards);
    page.version = Math.max(page.version, version);
    this.screen.update();
  },

  async addClass(name, page) {
    if (this.classes.includes(name)) return;
    const { classes, version } = await postClass(name);
    this.know({ ...this.status, classes, version });
    await this.moved(version, page);
    this.render();
  },

  /** Fetch the next page of this screen and show it. */
  turn() {
    return this.busy(async () => {
      const { screen } = this;
      if (screen.kind !== "progress") {
        const size = this.size(screen);
        let page = await getPage(screen.kind, size, this.leftOut);
        if (!page.cards.length && this.leftOut.size) {
          this.leftOut.clear(); // nothing else is left: they come again
          page = await getPage(screen.kind, size, []);
        }
        if (screen.page?.cards.length) this.remember(screen);
        await screen.take(page);
        this.lookAhead(screen, page, size);
      }
      this.render();
      this.main.dataset.turn = ++this.turns; // pages only: a screen that is drawn anew shows the same photos
    });
  },

  /** Fetch the photos of the page that will probably be next. Where that fails, nothing is lost but time. */
  async lookAhead({ kind }, page, size) {
    if (!page.cards.length) return;
    const next = await getPage(kind, size, [...this.leftOut, ...page.cards.map((card) => card.photo)]).catch(() => null);
    if (next) fetchAhead(next.cards.map((card) => card.photo));
  },

  /** How many photos a page has: half as many on a phone, and as the size of the photos was chosen. */
  size(screen) {
    const scale = screen instanceof Grid ? SCALES[this.scale] : 1;
    return Math.max(1, SIZES[screen.kind] * scale * (matchMedia("(max-width: 600px)").matches ? 0.5 : 1));
  },

  resize(key) {
    this.scale = Math.min(Math.max(this.scale + (key === "-" ? 1 : -1), 0), SCALES.length - 1);
    return this.turn();
  },

  remember({ kind, page, done, out }) {
    this.history = [...this.history, { kind, page, done, out }].slice(-REMEMBERED);
  },

  render() {
    this.isEmpty = false;
    this.shownClasses = this.classes.join("\n");
    this.main.className = this.screen.kind;
    this.main.scrollTop = 0;
    this.screen.show(this.main, this.footer);
    this.showNext();
    for (const tab of document.querySelectorAll("[data-screen]")) {
      const isHere = tab.dataset.screen === (this.screen.kind === "audit" ? "progress" : this.screen.kind);
      if (isHere) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
  },

  /** Offer what is worth doing now, where it is another screen. */
  showNext() {
    const { status, screen } = this;
    const isNew = status.accuracy === null && status.num_audit_left && status.num_labelled >= WORTH_MEASURING;
    const offers = { groups: status.solved_version >= 0 ? ["The model can guess now", "guesses"] : null, guesses: isNew ? ["See how good the model is", "audit"] : null };
    const [text, kind] = offers[screen.kind] ?? [];
    const place = find("next");
    if (!place || place.textContent === (text ?? "")) return;
    place.replaceChildren(...(text ? [button(text, "", () => this.go(kind))] : []));
  },

  /** Draw the screen anew, as others have changed the classes; what is being typed stays. */
  renderKeeping() {
    const [typed, isTyping] = [find("name")?.value, document.activeElement === find("name")];
    this.render();
    if (typed) find("name").value = typed;
    if (isTyping) this.focusName();
  },

  async go(kind) {
    if (this.isBusy) return;
    const [before, next] = [this.screen, this.screens[kind]];
    const kept = next.page;
    if (before?.page?.cards.length) this.remember(before);
    this.hideAlert();
    next.page = null;
    this.screen = next;
    if (await this.turn()) return;
    next.page = kept; // it could not be fetched: what was shown stays
    this.screen = before ?? next;
  },

  /** Show that a screen has nothing, why, and where to go on. */
  showEmpty(text) {
    const { status, screen } = this;
    this.isEmpty = true;
    this.footer.hidden = true;
    const isReading = status.num_featured < status.num_photos;
    const next = this.suggested(screen.kind);
    const hasModel = status.solved_version >= 0;
    const words = isReading && screen.kind !== "audit"
      ? ["Photos are being read", `${status.num_featured.toLocaleString("en")} of ${count(status.num_photos, "photo")} so far. You can begin as soon as there are enough.`]
      : [hasModel || !["doubts", "guesses", "questions"].includes(screen.kind) ? text : "The model does not know enough yet", next === "groups" ? "Name some groups first; then the model can guess." : status.is_done ? "Every photo is labelled." : ""];
    const on = next && !(isReading && !status.num_labelled) ? button(`Go on with ${NAMES[next]}`, "Enter", () => this.go(next), { class: "accept", id: "on" }) : null;
    this.main.replaceChildren(make("div", { class: "empty" }, make("h1", { text: words[0] }), make("p", { class: "hint", text: words[1] }), isReading ? make("progress", { max: status.num_photos, value: status.num_featured, "aria-label": "Photos read" }) : null, on));
  },

  /** The screen that brings most now, other than one. */
  suggested(without) {
    const { status } = this;
    const left = status.num_photos - status.num_labelled - status.num_set_aside;
    const places = status.is_done ? ["progress"] : status.solved_version < 0 ? ["groups"]
      : left > status.num_audit_left ? ["guesses", "groups", "questions"] : ["audit", "progress"];
    return places.find((one) => one !== without) ?? "progress";
  },

  async undo() {
    while (this.isBusy) await new Promise((done) => setTimeout(done, WAIT_MS)); // pressed twice, it is done twice
    return this.busy(async () => {
      const { version, cards } = await postUndo();
      if (!cards.length) return this.say("There is nothing to undo.");
      if (!this.screen.page || !this.screen.refresh(cards, { takenBack: true })) this.bringBack(cards);
      this.screen.page.version = version;
      await this.poll();
      this.render();
      this.say(`Taken back: ${count(cards.length, "photo")}.`);
    });
  },

  /** Show the page on which photos were answered, or one of them alone. */
  bringBack(cards) {
    const photos = new Set(cards.map((card) => card.photo));
    const at = this.history.findLastIndex(({ page }) => page.cards.filter((card) => photos.has(card.photo)).length === photos.size);
    if (this.screen.page?.cards.length) this.remember(this.screen);
    if (at >= 0) {
      const [{ kind, ...kept }] = this.history.splice(at, 1);
      this.screen = Object.assign(this.screens[kind], kept);
    } else {
      this.screen = Object.assign(this.screens.guesses, { page: { kind: "guesses", suggestion: null, cards, left: 0 }, cursor: 0, done: new Set(), out: new Set() });
    }
    this.screen.refresh(cards, { takenBack: true });
  },

  zoom() {
    const card = this.screen.current;
    if (!card) return;
    const dialog = find("zoom");
    const image = make("img", { src: address(card.photo, "screen"), alt: card.name, onclick: () => dialog.classList.toggle("full") });
    const known = card.label ?? card.guess;
    dialog.replaceChildren(
      make("div", { class: "whole" }, image),
      make("p", { class: "caption" }, make("span", { class: "file", text: card.name }), known && this.screen.kind !== "audit" ? label(known, this.classes) : null, button("Close", "Esc", () => dialog.close())));
    if (!dialog.open) dialog.showModal();
  },

  showKeys() {
    const rows = [...this.screen.legend, ["u", "undo, as often as you like"], [", .", "the screen before, the next one"], ["?", "these keys"]];
    const dialog = find("keys");
    dialog.replaceChildren(make("h2", { text: "Keys" }), make("dl", {}, ...rows.flatMap(([key, text]) => [make("dt", {}, ...key.split(" ").map((one) => make("kbd", { text: one }))), make("dd", { text })])), button("Close", "Esc", () => dialog.close()));
    dialog.showModal();
  },

  mayFocus: () => !document.activeElement?.matches("input") && !document.querySelector("dialog[open]"),
  focusName: () => find("name")?.focus(),

  say(text) {
    find("said").textContent = text;
  },

  alert(text) {
    find("alert").hidden = false;
    find("alert").querySelector("p").textContent = text;
  },

  hideAlert() {
    find("alert").hidden = true;
  },

  /** Ask how far it is, and show it. */
  async poll() {
    const before = this.status;
    try {
      this.know(await getStatus());
      if (this.isLost) this.hideAlert();
      this.isLost = false;
    } catch (failure) {
      this.isLost = true;
      return this.alert(failure.message);
    }
    const { status, screen } = this;
    if (!screen || !before) return undefined;
    if (screen.kind === "progress") screen.update();
    this.showNext();
    const isNew = ["num_featured", "version", "solved_version", "num_photos"].some((name) => before[name] !== status[name]);
    if (this.isEmpty && isNew) await this.turn();
    else if (this.shownClasses !== status.classes.join("\n") && !this.isBusy && !find("zoom").open) this.renderKeeping();
    if (screen.page?.cards.length && status.version > screen.page.version && !this.isBusy) {
      await this.catchUp(screen.page, status.version).catch((failure) => this.alert(failure.message));
    }
    return undefined;
  },

  /** Take over how far it is, unless what was told later is known already. */
  know(status) {
    if (this.status && status.version < this.status.version) return;
    this.status = status;
    this.showCount();
  },

  showCount() {
    const { status } = this;
    const finished = status.num_labelled + status.num_set_aside;
    const reading = status.num_featured < status.num_photos ? `${status.num_featured.toLocaleString("en")} of ${count(status.num_photos, "photo")} read` : null;
    const parts = [`${status.num_labelled.toLocaleString("en")} of ${status.num_photos.toLocaleString("en")} labelled`, status.num_set_aside ? `${status.num_set_aside.toLocaleString("en")} set aside` : null, reading];
    find("count").textContent = parts.filter(Boolean).join(" · ");
    find("folder").textContent = status.folder;
    document.title = `${status.folder}: ${finished} of ${status.num_photos} labelled`;
    const bar = find("bar");
    bar.setAttribute("aria-valuemax", status.num_photos);
    bar.setAttribute("aria-valuenow", finished);
    bar.style.setProperty("--share", status.num_photos ? finished / status.num_photos : 0);
  },

  key(event) {
    const zoom = find("zoom");
    if (["z", " "].includes(event.key)) return zoom.open ? zoom.close() : this.screen.current ? this.zoom() : false;
    if (find("keys").open || !this.screen || (!this.screen.page && this.screen.kind !== "progress")) return false;
    const at = ORDER.indexOf(this.screen.kind === "audit" ? "progress" : this.screen.kind);
    const acts = {
      u: () => this.undo(), "?": () => this.showKeys(), n: () => this.focusName(),
      ...(this.screen instanceof Grid ? { "+": () => this.resize("+"), "-": () => this.resize("-") } : {}),
      ",": () => this.go(ORDER.at(at - 1)), ".": () => this.go(ORDER[(at + 1) % ORDER.length]),
    };
    if (acts[event.key] && !zoom.open) return acts[event.key]();
    if (this.isEmpty) return event.key === "Enter" ? find("on")?.click() : false;
    if (this.isBusy) return undefined;
    const done = this.screen.key(event);
    if (zoom.open && done !== false) Promise.resolve(done).then(() => (this.isEmpty ? zoom.close() : this.zoom()));
    return done;
  },
};

const isOfItself = (target) => target.closest("button, a, summary") && !target.closest(".cards, .strip"); // Enter and Space press it

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.target.matches("input")) {
    if (event.key === "Escape") app.screen.update(event.target.blur());
    return;
  }
  if (["Enter", " "].includes(event.key) && isOfItself(event.target)) return;
  if (event.repeat && !event.key.startsWith("Arrow")) return event.preventDefault();
  if (app.key(event) !== false) event.preventDefault();
});
addEventListener("keyup", (event) => {
  if (event.key === " " && event.target.closest?.(".cards, .strip")) event.preventDefault(); // else it presses the card
});
addEventListener("click", (event) => {
  const isPressed = event.detail && event.target.closest("#footer button, .question button, header .tools button");
  if (isPressed && app.screen?.put && app.screen.page?.cards.length && !app.isEmpty && app.mayFocus()) document.activeElement.blur();
});
addEventListener("pointermove", (event) => {
  app.pointer = event.pointerType === "mouse" ? [event.clientX, event.clientY] : null;
});
addEventListener("wheel", (event) => Object.assign(app, { isWheeled: true, pointer: [event.clientX, event.clientY] }), { passive: true });
addEventListener("keydown", () => Object.assign(app, { isWheeled: false }), true);
app.main.addEventListener("scroll", () => app.isWheeled && app.screen?.follow?.());
addEventListener("resize", () => app.screen?.fit());
addEventListener("error", (event) => app.alert(`Something went wrong on this page: ${event.message}. Load it again; what was saved is safe.`));
addEventListener("unhandledrejection", (event) => app.alert(`Something went wrong on this page: ${event.reason}. Load it again; what was saved is safe.`));
for (const tab of document.querySelectorAll("[data-screen]")) tab.addEventListener("click", () => app.go(tab.dataset.screen));
find("undo").addEventListener("click", () => app.undo());
find("help").addEventListener("click", () => app.showKeys());
find("alert").querySelector("button").addEventListener("click", () => app.hideAlert());

async function start() {
  for (const kind of ["groups", "guesses", "doubts"]) app.screens[kind] = new Grid(kind, app);
  for (const kind of ["questions", "audit"]) app.screens[kind] = new Single(kind, app);
  app.screens.progress = new Progress(app);
  await enter();
  await app.poll();
  if (!app.status) {
    app.main.replaceChildren(make("div", { class: "empty" }, make("h1", { text: "This page is closed" }), make("p", { class: "hint", text: "Open the address that the terminal shows. Each address opens one browser; for another one, the terminal shows the next." })));
    return;
  }
  await app.go(app.status.is_done ? "progress" : app.status.solved_version < 0 ? "groups" : "guesses");
  keepAsking();
}

/** Ask again and again how far it is, sooner while something is under way. */
async function keepAsking() {
  for (;;) {
    const { num_featured, num_photos, training } = app.status;
    const isSoon = app.isLost || app.isEmpty || num_featured < num_photos || training?.state === "running";
    await new Promise((done) => setTimeout(done, isSoon ? SOON_MS : LATER_MS));
    if (!document.hidden) await app.poll();
  }
}

start();
