// --- the turns of the open chat: shown, asked, edited ------------------------------------------------------------

const asTurn = (typed, files) => ({ role: "user", typed, files, content: [...files.map(asText), typed].filter(Boolean).join("\n\n") });

function asText({ name, text }) {
  const fence = "`".repeat(Math.max(3, ...(text.match(/`+/g) ?? []).map((run) => run.length + 1)));
  return `${name}:\n${fence}\n${text}\n${fence}`;
}

function drawLog() {
  $("log").replaceChildren($("hello"), ...state.chat.turns.map(turnView).filter(Boolean));
  $("hello").hidden = state.chat.turns.length > 0;
  draw();
}

function turnView(turn, index) {
  if (turn.role === "user") return userView(turn);
  if (turn.role === "tool") return element("details", "result", element("summary", "", "Result"), element("pre", "", turn.content));
  const prefix = state.model.recycle.chat ? "" : state.chat.turns[index - 1]?.content;
  const answer = new Answer(turn, prefix);
  addActions(answer);
  return element("section", "answers", answer.card);
}

function userView(turn) {
  if (!state.model.recycle.chat) return null; // the answer shows it as its beginning
  const files = (turn.files ?? []).map(({ name, text }) =>
    element("details", "file", element("summary", "", name), element("pre", "", text)));
  const view = element("section", "asked", ...files, element("p", "mine", turn.typed ?? turn.content));
  view.append(element("div", "actions",
    copyButton(() => turn.typed ?? turn.content),
    button("Edit", () => edit(view, turn.typed ?? turn.content, "Send", (text) => askAnew(turn, text)))));
  return view;
}

function addActions(answer) {
  const { turn, card } = answer;
  const isChat = state.model.recycle.chat;
  answer.actions.replaceChildren(copyButton(() => turn.content));
  if (!state.chat.turns.includes(turn)) return; // the other one of two
  answer.actions.append(button("Regenerate", () => regenerate(turn)));
  if (isChat) answer.actions.append(button("Edit", () => edit(answer.body, turn.content, "Save", (text) => rewrite(turn, text))));
  card.querySelector(".results")?.remove();
  if (turn === state.chat.turns.at(-1)) {
    if (turn.others?.length) answer.actions.append(button(`Other answer (${turn.others.length})`, () => showOther(turn)));
    if (answer.isCut) answer.actions.append(button("Continue", () => respond(state.chat.turns, { cut: answer })));
    if (turn.tool_calls?.length) card.append(resultsForm(turn));
  }
}

function resultsForm(turn) {
  const areas = turn.tool_calls.map((call) => {
    const area = element("textarea");
    area.value = state.drafts[call.id] ?? "";
    area.rows = 2;
    area.addEventListener("input", () => { state.drafts[call.id] = area.value; });
    return area;
  });
  const labels = areas.map((area, index) => element("label", "tall", `Result of ${turn.tool_calls[index].function.name}`, area));
  const form = element("form", "results", ...labels, element("button", "", "Send results"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const results = areas.map((area, index) => ({ role: "tool", tool_call_id: turn.tool_calls[index].id, content: area.value }));
    ask(state.chat.turns, results);
  });
  return form;
}

// --- edits

function edit(view, text, label, onSave) {
  if (state.running || view.nextElementSibling?.classList.contains("editor")) return;
  const area = element("textarea");
  area.value = text;
  area.setAttribute("aria-label", "Edited text");
  const form = element("form", "editor", area, element("div", "", element("button", "", label), button("Cancel", close)));
  function close() {
    form.remove();
    view.hidden = false;
    $("prompt").focus();
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) onSave(area.value);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  view.hidden = true;
  view.after(form);
  area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight / 2)}px`;
  area.focus();
}

const turnsBefore = (turn) => state.chat.turns.slice(0, state.chat.turns.indexOf(turn));
const askAnew = (turn, text) => ask(turnsBefore(turn), [asTurn(text, turn.files ?? [])], text);
const regenerate = (turn) => respond(turnsBefore(turn), { replaced: turn });

// Answers that were regenerated are kept behind the one that is shown, which goes to the end of them.
function showOther(turn) {
  const { others: [next, ...rest], ...shown } = turn;
  state.chat.turns = [...turnsBefore(turn), { ...next, others: [...rest, shown] }];
  keepChat(state.chat);
  drawLog();
}

function rewrite(turn, text) {
  Object.assign(turn, { content: text, runs: [] });
  keepChat(state.chat);
  drawLog();
}

// --- asking

function ask(turns, added, typed = null) {
  if (state.running) return undefined;
  return respond([...turns, ...added], { typed });
}

// Answers after `turns`, in place of `replaced`, or goes on with `cut`. If nothing comes, the chat is as it was, and `typed` is in its box.
async function respond(turns, { typed = null, cut = null, replaced = null }) {
  if (state.running) return;
  const { chat } = state;
  const before = chat.turns;
  const strategies = cut ? [cut.turn.strategy] : chosenStrategies();
  chat.turns = turns;
  chat.system = $("system").value.trim();
  keepChat(chat); // a page that is closed meanwhile has the question
  history.replaceState(null, "", `#${chat.id}`);
  state.seed = Math.floor(Math.random() * 2 ** 31);
  const controller = (state.running = new AbortController());
  const answers = cut ? [cut] : strategies.map((strategy) => begun(strategy, turns));
  if (!cut) {
    drawLog();
    $("log").append(element("section", answers.length > 1 ? "answers two" : "answers", ...answers.map(({ card }) => card)));
  }
  draw();
  $("scroll").scrollTop = $("scroll").scrollHeight;
  const asked = cut ? turns.slice(0, -1) : turns;
  // One after the other: side by side they would take the processor from each other.
  const order = state.asked++ % 2 ? [...answers].reverse() : answers; // the first one reads the prompt cold
  for (const answer of order) if (!controller.signal.aborted) await answer.run(asked, controller.signal);
  if (state.running === controller) state.running = null;
  if (chat.isDeleted) return;
  const kept = answers.filter((answer) => !answer.isEmpty).at(-1);
  if (kept && replaced) kept.turn.others = [...(replaced.others ?? []), { ...replaced, others: undefined }];
  if (kept && !cut) chat.turns = [...turns, kept.turn];
  if (!kept) chat.turns = before;
  keepChat(chat);
  if (state.chat !== chat) return; // another one was opened meanwhile
  if (kept) finish(answers, kept);
  else giveBack(answers, typed, turns.at(-1).files);
}

const begun = (strategy, turns) =>
  new Answer({ role: "assistant", content: "", strategy }, state.model.recycle.chat ? "" : turns.at(-1).content);

function chosenStrategies() {
  const chosen = $("strategy").value;
  return $("compare").checked && chosen !== "full" ? ["full", chosen] : [chosen];
}

function finish(answers, kept) {
  if (answers.length > 1) compare(...answers);
  answers.forEach(addActions);
  $("status").textContent = kept.turn.content;
  draw();
  scrollDown();
  if (kept.turn.tool_calls?.length) kept.card.querySelector(".results textarea")?.focus();
  else $("prompt").focus();
}

function giveBack(answers, typed, files) {
  drawLog();
  $("log").append(element("section", "answers", ...answers.map(({ card }) => card)));
  if (typed !== null) {
    const box = $("prompt");
    box.value = [typed, box.value].filter(Boolean).join("\n\n");
    state.files = [...(files ?? []), ...state.files];
    drawFiles();
    grow();
  }
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("prompt").focus();
}
