// A conversation as a customer has it, with the verdict of every answer below it.

import { $, get, post, span } from "./app.js";

const turns = $("turns"), question = $("question"), asking = $("asking");

function made(tag, name, text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

/** The events of a stream, as they come. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

/** Times as they were measured to the end of the turn; what is kept with it ends where it is written. */
function times(part, { total_us, latency_us }) {
  part.querySelector(".time").textContent = span(total_us);
  const passed = Object.entries(latency_us).filter(([, us]) => us > 0);
  const longest = Math.max(...passed.map(([, us]) => us), 1);
  part.querySelector(".stages").replaceChildren(...passed.map(([stage, us]) => {
    const row = document.createElement("li");
    const bar = made("meter", "");
    bar.max = longest;
    bar.value = us;
    bar.ariaHidden = "true";
    row.append(made("span", "", stage), bar, made("span", "number", span(us)));
    return row;
  }));
}

async function ask(text) {
  $("nothing")?.remove();
  const turn = made("li", "turn");
  // Those who listen hear the answer when it is complete.
  turn.ariaBusy = "true";
  const answer = made("div", "answer writing");
  const said = made("p", "");
  answer.append(said);
  turn.append(made("p", "asked", text), answer);
  turns.append(turn);
  asking.scrollIntoView({ block: "end" });
  try {
    const { conversation } = turns.dataset;
    const body = { model: "turnflow", stream: true, channel: "web", conversation, messages: [{ role: "user", content: text }] };
    const response = await post("/ui/chat", body, $("anew").checked ? { "Cache-Control": "no-cache" } : {});
    let about = null;
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      said.textContent += event.choices[0]?.delta?.content ?? "";
      about = event.turnflow ?? about;
    }
    if (about === null) throw new Error("the answer broke off");
    const verdict = await get(`/ui/turn?${new URLSearchParams({ conversation: about.conversation, turn: about.turn })}`);
    const part = document.createElement("template");
    // Made and escaped by the server.
    part.innerHTML = await verdict.text();
    times(part.content, about);
    turn.append(part.content);
  } catch (error) {
    answer.classList.add("wrong");
    said.textContent = `No answer: ${error.message}.`;
  }
  answer.classList.remove("writing");
  turn.ariaBusy = "false";
  asking.scrollIntoView({ block: "end" });
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

asking.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value.trim();
  const button = asking.querySelector("button");
  if (text === "" || button.disabled) return;
  button.disabled = true;
  question.value = "";
  grow();
  await ask(text);
  button.disabled = false;
  question.focus();
});
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    asking.requestSubmit();
  }
});
