"use strict";
// Text from files, names and the model reaches the page as text alone: nothing here writes HTML.

const AT_ONCE = 4;
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const headers = token ? { Authorization: `Bearer ${token}` } : {};
let jobs = []; // in the order in which photos were given
let underWay = 0;

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function describe() {
  const reply = await fetch("v1/model", { headers });
  if (reply.status === 401) {
    find("status").textContent = "This server wants a token: open the page as /#token=TOKEN";
    return;
  }
  const model = await reply.json();
  const named = model.classes.slice(0, 8).join(", ");
  const more = model.classes.length > 8 ? ` and ${model.classes.length - 8} more` : "";
  find("title").textContent = `Which is it: ${named}${more}?`;
  const a = model.accuracy;
  if (a) {
    find("about").textContent = `Right on ${percent(a.value)} of ${a.n} ${a.split} photos (95 % interval ${percent(a.low)} to ${percent(a.high)}).`;
  }
  const facts = {
    backbone: model.backbone,
    parameters: `${(model.num_params / 1e6).toFixed(1)} million`,
    trained: model.mode,
    photos: `${model.num_photos}, to learn from and to be judged on`,
    "input": `${model.input.height} x ${model.input.width} pixels`,
    licence: model.licence,
    "largest request": `${Math.floor(model.limits.max_bytes / 2 ** 20)} MB`,
  };
  for (const [name, value] of Object.entries(facts)) {
    find("facts").append(element("dt", name), element("dd", value));
  }
  const head = element("tr");
  head.append(...["class", "photos", "recall", "precision"].map((name) => element("th", name)));
  find("classes").append(head);
  for (const row of model.per_class) {
    const line = element("tr");
    line.append(element("td", row.class), element("td", row.n), element("td", percent(row.recall)), element("td", percent(row.precision)));
    find("classes").append(line);
  }
}

function take(files) {
  const made = files.map((file) => {
    const card = element("article", "", "answer");
    const pictures = element("div", "", "pictures");
    const picture = document.createElement("img");
    picture.alt = file.name;
    picture.decoding = "async";
    picture.src = URL.createObjectURL(file);
    picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
    picture.addEventListener("error", () => picture.remove()); // not every browser shows what the model can read
    pictures.append(picture);
    const said = element("div", "", "said");
    said.append(element("h3", "…"), element("p", file.name, "name"));
    card.append(pictures, said);
    const row = element("tr");
    row.append(element("td", file.name), element("td", "…"), element("td"));
    return { file, card, pictures, said, row, isAsked: false, answer: null };
  });
  jobs.push(...made);
  find("results").prepend(...made.map((job) => job.card));
  find("rows").append(...made.map((job) => job.row));
  find("list").hidden = jobs.length < 2;
  pump();
}

function pump() {
  for (const job of jobs) {
    if (underWay >= AT_ONCE) break;
    if (job.isAsked) continue;
    job.isAsked = true;
    underWay += 1;
    ask(job).finally(() => {
      underWay -= 1;
      pump();
    });
  }
  const left = jobs.filter((job) => !job.answer).length;
  find("status").textContent = left ? `${left} to go` : jobs.length ? `${jobs.length} done` : "";
}

async function ask(job, again = 5) {
  const heat = find("heat").checked ? 1 : 0;
  let answer;
  try {
    const reply = await fetch(`v1/predict?top=5&heatmap=${heat}`, {
      method: "POST",
      headers: { ...headers, "Content-Type": "application/octet-stream" },
      body: job.file,
    });
    if (reply.status === 503 && again) {
      const seconds = Number(reply.headers.get("Retry-After")) || 1;
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      return ask(job, again - 1);
    }
    const body = await reply.json();
    answer = body.predictions ? body.predictions[0] : { error: body.error };
  } catch {
    answer = { error: "the server did not answer" };
  }
  job.answer = { ...answer, name: job.file.name };
  show(job);
  list(job);
}

function show({ card, pictures, said, file, answer }) {
  said.replaceChildren();
  if (answer.error) {
    card.classList.add("bad");
    pictures.remove();
    said.append(element("h3", "Cannot be read"), element("p", file.name, "name"), element("p", answer.error, "note bad"));
    return;
  }
  if (answer.unsure || answer.looks_new) card.classList.add("warn");
  said.append(element("h3", answer.unsure ? `unsure: perhaps ${answer.label}` : answer.label), element("p", file.name, "name"), bars(answer));
  if (answer.looks_new) said.append(element("p", "Looks like nothing it has learned from: do not rely on this.", "note warn"));
  if (answer.labels) said.append(element("p", `One of: ${answer.labels.join(", ")}`, "note"));
  if (answer.heatmap) {
    const heat = document.createElement("img");
    heat.alt = `Where it looks for ${answer.label}`;
    heat.src = answer.heatmap;
    pictures.append(heat, element("span", "where it looks", "caption"));
  }
}

function bars(answer) {
  const all = element("div", "", "bars");
  for (const [name, share] of Object.entries(answer.probabilities)) {
    const bar = element("div", "", "bar");
    const meter = document.createElement("progress");
    meter.max = 1;
    meter.value = share;
    meter.setAttribute("aria-label", name);
    const label = element("span", name);
    label.title = name;
    bar.append(label, meter, element("span", percent(share)));
    all.append(bar);
  }
  return all;
}

function list({ row, answer }) {
  const [, said, share] = row.children;
  const notes = answer.error ? [answer.error] : [answer.unsure && "unsure", answer.looks_new && "looks new"].filter(Boolean);
  said.textContent = answer.error ? "" : answer.label;
  if (notes.length) said.append(element("small", notes.join(", "), answer.error ? "bad" : "warn"));
  share.textContent = answer.error ? "" : percent(answer.probability);
}

function cell(value) {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // no formula for a spreadsheet
  return `"${safe.replaceAll('"', '""')}"`;
}

function download() {
  const header = ["photo", "label", "probability", "unsure", "looks_new", "error"];
  const answers = jobs.map((job) => job.answer).filter(Boolean);
  const lines = answers.map((a) => [a.name, a.label, a.probability, a.unsure, a.looks_new, a.error].map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[header.join(","), ...lines].join("\r\n")], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

function clear() {
  jobs = [];
  find("results").replaceChildren();
  find("rows").replaceChildren();
  find("list").hidden = true;
  find("status").textContent = "";
}

for (const id of ["files", "camera"]) {
  find(id).addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
}
const drop = find("drop");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
addEventListener("dragleave", () => drop.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take([...event.dataTransfer.files]);
});
addEventListener("hashchange", () => location.reload()); // a token was added
addEventListener("paste", (event) => take([...event.clipboardData.files]));
find("csv").addEventListener("click", download);
find("clear").addEventListener("click", clear);
describe();
