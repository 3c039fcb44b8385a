// What all pages share: how something is sent, what is asked before something is lost, and what is told after it.

export const $ = (id) => document.getElementById(id);

const token = document.querySelector('meta[name="token"]')?.content ?? "";

/** Sends JSON; the response may be anything but an error, which is thrown with the server's words. */
export async function post(path, body, headers = {}) {
  return checked(await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": token, ...headers },
    body: JSON.stringify(body),
  }));
}

/** Reads something, in the same way. */
export async function get(path) {
  return checked(await fetch(path));
}

async function checked(response) {
  if (response.ok) return response;
  if (response.status === 401) location.assign("/ui/login");
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `the server answered ${response.status}`);
}

/** Says something at the bottom of the page, for a while. */
export function tell(text) {
  const told = $("told");
  told.textContent = text;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => (told.textContent = ""), 6000);
}

/** Asks before something is done that cannot be taken back. */
export function ask(title, text, yes) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

/** A time, from microseconds. */
export function span(us) {
  if (us == null) return "–";
  if (us < 1e3) return `${us} µs`;
  if (us < 1e4) return `${(us / 1e3).toFixed(1)} ms`;
  return us < 1e6 ? `${Math.round(us / 1e3)} ms` : `${(us / 1e6).toFixed(1)} s`;
}

/** A count with its noun. */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

async function flush(button) {
  const { id, article, text, all, then } = button.dataset;
  const meant = id ? { entry: Number(id) } : { article: article ?? "", text: text ?? "", all: all === "true" };
  try {
    const { count: would } = await (await post("/ui/flush", { ...meant, dry_run: true })).json();
    if (would === 0) return tell("Nothing of that is cached any more.");
    const said = `${count(would, "cached answer")} will be gone. Whoever asks next is answered anew.`;
    if (!(await ask("Flush the caches?", said, "Flush"))) return;
    const { count: gone } = await (await post("/ui/flush", meant)).json();
    tell(`${count(gone, "cached answer")} gone.`);
    if (then) location.assign(then);
    else if (id) button.closest("li").remove();
    else location.reload();
  } catch (error) {
    tell(`Not flushed: ${error.message}.`);
  }
}

// On a narrow page the way to the others is wider than the page.
document.querySelector('nav [aria-current="page"]')?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-flush]");
  if (button) flush(button);
});
