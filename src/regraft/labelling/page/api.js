// What the page asks of the program that shows it. Each call returns what was answered, or throws a Failure.

export class Failure extends Error {
  constructor(message, status, photos = []) {
    super(message);
    this.status = status;
    this.photos = photos;
  }
}

const GONE = "The program does not answer: is its terminal still open? What you did last was not saved.";
let tab = "";

/** Give this tab a name that no other open tab has, and that the next one opened after it takes over, with its undo. */
export async function enter() {
  const browser = remembered("browser");
  for (let number = 1; !tab && navigator.locks && number < 100; number++) {
    tab = await new Promise((taken) => {
      navigator.locks.request(`tab ${number}`, { ifAvailable: true }, (lock) => {
        taken(lock ? `${browser}t${number}` : "");
        return lock ? new Promise(() => {}) : null; // held until the tab is closed
      });
    });
  }
  tab ||= random();
}

const random = () => [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function remembered(name) {
  try {
    if (!localStorage.getItem(name)) localStorage.setItem(name, random());
    return localStorage.getItem(name);
  } catch {
    return random(); // a browser that keeps nothing
  }
}

async function call(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: { "X-Tab": tab, ...options.headers } });
  } catch {
    throw new Failure(GONE, 0);
  }
  const body = await reply.json().catch(() => ({ error: `the program answered with status ${reply.status}` }));
  if (!reply.ok) throw new Failure(sentence(body.error), reply.status, body.photos);
  return body;
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

const post = (path, body = {}) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const getStatus = () => call("api/status");

export function getPage(kind, size, without, className = "") {
  const query = new URLSearchParams({ kind, size, without: [...without].slice(-4000).join(",") });
  if (className) query.set("class", className);
  return call(`api/page?${query}`);
}

export const getCards = (photos) => call(`api/cards?photos=${photos.join(",")}`).then((body) => body.cards);
export const postAnswers = (answers, version, isAudit = false) => post("api/answers", { answers, version, is_audit: isAudit });
export const postUndo = () => post("api/undo");
export const postClass = (name, old = null) => post("api/classes", { name, old });
export const postTrain = () => post("api/train");
export const postSort = () => post("api/sort");
