// How far it is, how good the model is, what more labels would bring, and the model itself.

import { button, count, draw, make, percent } from "./dom.js";
import { colour, label } from "./classes.js";
import { postClass, postSort, postTrain } from "./api.js";

const MORE = 50; // labels that the gain is told for
const WIDTH = 400;
const HEIGHT = 230;
const MARGIN = { left: 46, right: 14, top: 12, bottom: 38 };
const HARDLY = 0.005; // of a gain

export class Progress {
  constructor(app) {
    Object.assign(this, { kind: "progress", app, page: null });
  }

  get current() {
    return null;
  }

  async take() {}

  show(main, footer) {
    footer.hidden = true;
    this.main = main;
    main.replaceChildren(this.body = make("div", { class: "progress" }));
    this.update();
  }

  /** Draw it anew, unless nothing has changed. */
  update() {
    const { status } = this.app;
    if (!this.body?.isConnected || !status || this.body.contains(document.activeElement?.closest("input"))) return;
    const shown = JSON.stringify(status);
    if (shown === this.shown && this.body.children.length) return;
    this.shown = shown;
    const focused = document.activeElement?.id;
    this.body.replaceChildren(
      status.is_done ? make("p", { class: "finished" }, make("span", { "aria-hidden": "true", text: "✓" }), "Every photo is labelled.") : make("h1", { class: "unseen", text: "Progress" }),
      this.labels(status), this.accuracy(status), this.model(status));
    if (focused) document.getElementById(focused)?.focus();
  }

  labels(status) {
    const { classes, num_photos, num_labelled, num_set_aside } = status;
    const left = num_photos - num_labelled - num_set_aside;
    const rows = classes.map((name) => {
      const meter = make("meter", { max: Math.max(1, ...Object.values(status.counts)), value: status.counts[name] ?? 0, "aria-label": name });
      return colour(make("li", {}, this.nameOf(name), meter, make("span", { class: "number", text: (status.counts[name] ?? 0).toLocaleString("en") })), name, classes);
    });
    const notes = [left ? `${left.toLocaleString("en")} to go` : null, num_set_aside ? `${num_set_aside.toLocaleString("en")} set aside` : null, status.num_unreadable ? `${count(status.num_unreadable, "file")} cannot be read` : null];
    const sort = status.sort_folder
      ? make("p", {}, button("Sort into class folders", "", () => this.sort(), { id: "sort" }), make("small", { text: ` copies in ${status.sort_folder}` }))
      : null;
    return make("section", {}, make("h2", { text: "Labels" }),
      make("p", { class: "figure" }, make("b", { text: num_labelled.toLocaleString("en") }), ` of ${count(num_photos, "photo")}`),
      make("p", { class: "hint", text: notes.filter(Boolean).join(", ") }), make("ul", { class: "counts" }, ...rows), sort);
  }

  /** A class, which a click lets one rename. */
  nameOf(name) {
    const { classes } = this.app;
    const shown = make("button", { type: "button", class: "rename", title: "Rename", "aria-label": `Rename ${name}`, onclick: () => {
      const field = make("input", { type: "text", value: name, maxlength: 100, "aria-label": `New name of ${name}`, spellcheck: "false" });
      const form = make("form", { class: "name", onsubmit: (event) => (event.preventDefault(), this.rename(name, field.value.trim())) }, field);
      field.addEventListener("blur", () => form.replaceWith(shown));
      shown.replaceWith(form);
      field.select();
    } }, label(name, classes));
    return shown;
  }

  rename(old, name) {
    document.activeElement.blur();
    if (!name || name === old) return undefined;
    return this.app.busy(async () => {
      await postClass(name, old);
      await this.app.poll();
      this.app.say(`${old} is called ${name} now.`);
    });
  }

  accuracy(status) {
    const { accuracy, num_audit_left } = status;
    const figure = accuracy
      ? [make("p", { class: "figure" }, make("b", { text: percent(accuracy.value) }), " right"),
        make("p", { class: "hint", text: `Between ${percent(accuracy.low)} and ${percent(accuracy.high)} (95 % interval), measured on ${count(accuracy.n, "photo")} drawn at random and answered before the model's guess was shown.` })]
      : [make("p", { class: "hint", text: "Not measured yet. Answer some photos that are drawn at random, without seeing what the model thinks: only they tell how good it really is." })];
    const measure = num_audit_left
      ? make("p", {}, button(accuracy ? "Measure more closely" : "Measure", "m", () => this.app.go("audit"), { id: "measure", class: accuracy ? "" : "accept" }), make("small", { text: ` ${count(num_audit_left, "photo")} to answer` }))
      : null;
    return make("section", {}, make("h2", { text: "How good is the model?" }), ...figure, measure, ...this.curve(status));
  }

  curve(status) {
    if (status.curve.length < 2) return [];
    const gain = status.expected_gain;
    const words = gain === null ? null
      : gain < HARDLY ? `Another ${MORE} labels would bring hardly anything.`
        : `Another ${MORE} labels would bring about ${(100 * gain).toFixed(1)} points.`;
    return [make("h3", { text: "What labels have brought" }), chart(status.curve, gain), words ? make("p", { class: "gain", text: words }) : null].filter(Boolean);
  }

  model(status) {
    const { training } = status;
    const isRunning = training?.state === "running";
    const enough = Object.values(status.counts).filter((number) => number > 0).length >= 2;
    const train = button(training?.state === "done" ? "Train again" : "Train the model", "t", () => this.train(), { id: "train", class: "accept", disabled: isRunning || !enough });
    const state = !training ? (enough ? "It learns from all labels and is saved as a model that can be used." : "It can be trained once two classes have labels.")
      : training.message;
    const report = status.has_report ? make("p", {}, make("a", { href: "report", target: "_blank", rel: "noopener", text: "Open the report" })) : null;
    return make("section", {}, make("h2", { text: "Model" }), make("p", {}, train),
      make("p", { class: `hint ${training?.state ?? ""}`, role: "status", text: state }), isRunning ? make("progress", { "aria-label": "Training" }) : null, report);
  }

  train() {
    return this.app.busy(async () => {
      await postTrain();
      await this.app.poll();
    });
  }

  sort() {
    return this.app.busy(async () => {
      const { num_photos } = await postSort();
      this.app.say(`${count(num_photos, "photo")} sorted into ${this.app.status.sort_folder}.`);
    });
  }

  fit() {}

  refresh() {
    return false;
  }

  key(event) {
    const acts = { m: "measure", t: "train" };
    const pressed = acts[event.key] && document.getElementById(acts[event.key]);
    if (!pressed || pressed.disabled) return false;
    return pressed.click();
  }

  get legend() {
    return [["m", "measure how good the model is"], ["t", "train the model"]];
  }
}

/** Accuracy over labels, with its interval, and what is to be expected of more. */
function chart(points, gain) {
  const last = points.at(-1);
  const end = gain === null ? last.num_labels : last.num_labels + MORE;
  const low = Math.max(0, Math.floor(10 * Math.min(...points.map((one) => one.low))) / 10);
  const x = (labels) => MARGIN.left + ((WIDTH - MARGIN.left - MARGIN.right) * labels) / end;
  const y = (share) => HEIGHT - MARGIN.bottom - ((HEIGHT - MARGIN.top - MARGIN.bottom) * (Math.min(share, 1) - low)) / (1 - low);
  const path = (pairs) => pairs.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)},${b.toFixed(1)}`).join("");
  const band = [...points.map((one) => [x(one.num_labels), y(one.high)]), ...points.toReversed().map((one) => [x(one.num_labels), y(one.low)])];
  const ticks = [low, (low + 1) / 2, 1];
  const described = `Accuracy rose from ${percent(points[0].accuracy)} with ${points[0].num_labels} labels to ${percent(last.accuracy)} with ${last.num_labels}.`;
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": described, class: "chart" },
    ...ticks.flatMap((share) => [
      draw("line", { class: "rule", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(share), y2: y(share) }),
      draw("text", { x: MARGIN.left - 8, y: y(share) + 4, "text-anchor": "end", text: percent(share) }),
    ]),
    draw("path", { class: "band", d: `${path(band)}Z` }),
    draw("path", { class: "line", d: path(points.map((one) => [x(one.num_labels), y(one.accuracy)])) }),
    ...points.map((one) => draw("circle", { class: "dot", cx: x(one.num_labels), cy: y(one.accuracy), r: 3.5 })),
    gain === null ? null : draw("path", { class: "line expected", d: path([[x(last.num_labels), y(last.accuracy)], [x(end), y(last.accuracy + gain)]]) }),
    draw("text", { x: MARGIN.left, y: HEIGHT - 14, text: "0" }),
    draw("text", { x: x(end), y: HEIGHT - 14, "text-anchor": "end", text: `${last.num_labels.toLocaleString("en")} labels${gain === null ? "" : `, then ${MORE} more`}` }));
}
