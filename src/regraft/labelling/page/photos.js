// Photos as elements that are kept, so that a page that was prepared is there at once.

import { make } from "./dom.js";

const KEPT = 160;
const thumbs = new Map(); // photo -> element, the one used last at the end

/** The thumbnail of a photo; the same element each time, as long as it is kept. */
export function thumb(photo) {
  let image = thumbs.get(photo);
  thumbs.delete(photo);
  if (!image) {
    image = make("img", { alt: "", decoding: "async", draggable: "false" });
    image.addEventListener("error", () => tell(image, photo));
    image.src = address(photo, "thumb");
  }
  thumbs.set(photo, image);
  for (const oldest of thumbs.keys()) {
    if (thumbs.size <= KEPT) break;
    thumbs.delete(oldest);
  }
  return image;
}

export const address = (photo, size) => `photo/${photo}?size=${size}`;

/** Have these thumbnails here before they are shown. */
export function fetchAhead(photos) {
  for (const photo of photos) thumb(photo);
}

/** Wait until these thumbnails can be drawn, or have failed; not longer than a person would. */
export function loaded(photos, most = 2500) {
  const all = Promise.all(photos.map((photo) => thumb(photo).decode().catch(() => null)));
  return Promise.race([all, new Promise((done) => setTimeout(done, most))]);
}

/** Width by height that fits most of these photos. */
export function aspect(photos) {
  const known = photos.map(thumb).filter((image) => image.naturalWidth).map((image) => image.naturalWidth / image.naturalHeight);
  if (!known.length) return 4 / 3;
  const middle = known.sort((a, b) => a - b)[Math.floor(known.length / 2)];
  return Math.min(Math.max(middle, 3 / 4), 3 / 2);
}

/** Say on a photo's place why it cannot be shown. */
async function tell(image, photo) {
  const reply = await fetch(address(photo, "thumb")).catch(() => null);
  if (reply?.ok) return; // it was only interrupted
  const body = reply ? await reply.json().catch(() => ({})) : {};
  image.alt = body.error ?? "this photo cannot be shown";
  image.classList.add("broken");
}
