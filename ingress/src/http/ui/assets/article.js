// Writes an article. While it is being written, the server tells which cached answers saving would take away; after it is saved,
// which it did, and which are made anew.

import { $, ask, count, get, post, tell } from "./app.js";

const form = $("article"), effect = $("effect"), save = $("save");
/** How long nobody types before the server is asked, in milliseconds. */
const PAUSE_MS = 350;
/** How often, and how far apart in milliseconds, the answers are looked at again after an edit. */
const LOOKS = 8, LOOK_MS = 1500;

let version = Number(form.dataset.version);
let timer = 0, asked = 0;
/** Whether a save is under way, and whether somebody writes meanwhile. */
let saves = false, writes_on = false;

const id = () => form.dataset.id ?? $("id").value.trim();
/** Notes stay as they are kept where nobody changed them. */
const notes = () => ($("notes").value === $("notes").defaultValue ? {} : { notes: $("notes").value });
const content = () => ({ title: $("title").value, body: $("body").value, ...notes() });
const write = async (body) => (await post("/ui/article", { id: id(), version, ...body })).json();

function say(kind, text) {
  effect.dataset.kind = kind;
  effect.textContent = text;
}

function mark(fell, name) {
  document.querySelectorAll("#answers li").forEach((row) => row.classList.remove("falls"));
  for (const { entry } of fell) document.querySelector(`#answers [data-entry="${entry}"]`)?.classList.add(name);
}

/** The questions of some answers, shortly. */
const named = (fell) => fell.slice(0, 3).map(({ question }) => `“${question}”`).join(", ") + (fell.length > 3 ? " and others" : "");

async function preview() {
  const number = ++asked;
  if (id() === "" || (content().title.trim() === "" && content().body.trim() === "")) return;
  try {
    const { count: falls, fell, chunks_changed } = await write({ content: content(), dry_run: true });
    // Another question is under way.
    if (number !== asked) return;
    mark(fell, "falls");
    if (falls > 0) say("falls", `Saving takes ${count(falls, "cached answer")} away: ${named(fell)}.`);
    else if (chunks_changed > 0) say("", "Saving takes no cached answer away.");
    else say("", "White space, letter case and notes alone: no cached answer is touched.");
  } catch (error) {
    if (number === asked) say("wrong", `${error.message}.`);
  }
}

/** Shows which answers rest on the article now, below those that are gone. */
async function look(looks) {
  const gone = [...document.querySelectorAll("#answers .gone")];
  const part = await (await get(`/ui/article?${new URLSearchParams({ id: id(), answers: "true" })}`)).text();
  const fresh = document.createElement("template");
  // Made and escaped by the server.
  fresh.innerHTML = part;
  $("answers").replaceChildren(fresh.content);
  if (gone.length > 0) {
    const list = document.createElement("ul");
    list.className = "rows tight";
    list.append(...gone);
    $("answers").append(list);
  }
  if (looks > 1) setTimeout(() => look(looks - 1).catch(() => {}), LOOK_MS);
}

function changed() {
  save.disabled = false;
  clearTimeout(timer);
  timer = setTimeout(preview, PAUSE_MS);
}

form.addEventListener("input", () => {
  // Until the reply, the version to be replaced is not known.
  if (saves) writes_on = true;
  else changed();
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(timer);
  asked += 1;
  save.disabled = saves = true;
  const sent = content();
  try {
    const written = await write({ content: sent });
    if (!form.dataset.id) return location.assign(`/ui/article?${new URLSearchParams({ id: written.id })}`);
    version = written.version;
    $("notes").defaultValue = sent.notes ?? $("notes").defaultValue;
    $("version").textContent = version;
    mark(written.fell, "gone");
    const gone = written.count === 0 ? "no cached answer was touched" : `${count(written.count, "cached answer")} gone: ${named(written.fell)}`;
    say("done", `Saved as version ${version}; ${gone}.`);
    setTimeout(() => look(LOOKS).catch(() => {}), LOOK_MS);
  } catch (error) {
    save.disabled = false;
    say("wrong", `Not saved: ${error.message}.`);
  }
  saves = false;
  if (writes_on) changed();
  writes_on = false;
});

$("delete")?.addEventListener("click", async () => {
  try {
    const { count: falls } = await write({ content: null, dry_run: true });
    const said = falls === 0 ? "No cached answer rests on it." : `${count(falls, "cached answer")} will be gone.`;
    if (!(await ask("Delete the article?", said, "Delete"))) return;
    await write({ content: null });
    location.assign("/ui/articles");
  } catch (error) {
    tell(`Not deleted: ${error.message}.`);
  }
});
