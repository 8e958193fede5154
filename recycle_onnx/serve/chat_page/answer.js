// --- one answer: a turn of the chat, and the card that shows it ------------------------------------------------

const FRAME = 40; // milliseconds between drawings: small models write faster than a page can be laid out
const percent = (share) => `${Math.round(100 * share)} %`;
const runsOf = (kinds) => (kinds.match(/^0*|1+|0+/g) ?? []).map((run) => run.length);
const kindsOf = (runs) => runs.map((length, index) => String(index % 2).repeat(length)).join("");
const OPENING = /^\s*<(think|thinking|thought|reasoning)>/;
const CLOSING = /(^|\n)\s*<\/(think|thinking|thought|reasoning)>\s*/;

// Returns where the thoughts of an answer lie, and where what follows them begins; null where it has none.
function thoughtsIn(text) {
  const from = text.match(OPENING)?.[0].length ?? 0;
  const closing = (from ? /()<\/(think|thinking|thought|reasoning)>\s*/ : CLOSING).exec(text);
  if (!from && !closing) return null;
  return closing ? { from, to: closing.index, rest: closing.index + closing[0].length } : { from, to: text.length, rest: text.length };
}

class Answer {
  constructor(turn, prefix = "") {
    this.turn = turn;
    this.kinds = kindsOf(turn.runs ?? []).slice(0, turn.content.length).padEnd(turn.content.length, "0");
    this.card = element("article", "answer");
    this.title = element("h2", "", element("span", "", turn.strategy));
    this.thoughts = element("details", "thoughts", element("summary", "", "Thoughts"), element("div", "plain"));
    this.prose = element("div", state.model.recycle.chat ? "prose" : "plain");
    this.body = element("div", "text", ...(prefix ? [element("span", "prefix", prefix)] : []), this.prose);
    this.calls = element("div", "calls");
    this.figures = element("dl");
    this.actions = element("div", "actions");
    this.card.append(this.title, this.body, this.calls, this.figures, this.actions);
    this.drawFigures();
    this.show();
  }

  // A chunk may hold text without a mark: what the server held back until it was certain.
  add(choice, mark) {
    const text = choice.delta?.content ?? choice.text ?? "";
    this.turn.content += text;
    this.kinds += (mark?.recycled ? "1" : "0").repeat(text.length);
    for (const call of choice.delta?.tool_calls ?? []) this.addCall(call);
    if (choice.finish_reason) this.turn.reason = choice.finish_reason;
    if (mark) this.count(mark);
    this.timer ??= setTimeout(() => this.show(), this.pause);
  }

  addCall({ index, id, function: { name, arguments: part } }) {
    const calls = (this.turn.tool_calls ??= []);
    calls[index] ??= { id, type: "function", function: { name, arguments: "" } };
    calls[index].function.arguments += part ?? "";
  }

  count(mark) {
    const live = this.live;
    live.last = performance.now();
    live.first ??= live.last;
    live.count += 1;
    live.recycled += mark.recycled;
    live.proposed = mark.proposed;
    live.accepted = mark.accepted;
  }

  show() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const begun = performance.now();
    const whole = new Marked(this.turn.content, this.kinds);
    const thoughts = thoughtsIn(whole.text);
    if (thoughts) this.showThoughts(whole.slice(thoughts.from, thoughts.to), thoughts.to < whole.text.length);
    const from = thoughts?.rest ?? 0;
    if (from !== this.from) {
      this.from = from;
      this.prose.replaceChildren();
      this.growing = new Growing(this.prose, !state.model.recycle.chat);
    }
    this.growing.show(whole.slice(from));
    this.showCalls();
    if (this.live) this.drawFigures();
    scrollDown();
    this.pause = Math.max(FRAME, 4 * (performance.now() - begun));
  }

  showThoughts(marked, isWhole) {
    this.thoughts.firstChild.textContent = isWhole ? "Thoughts" : "Thinking…";
    this.thoughts.lastChild.replaceChildren(...textNodes(marked));
    if (!this.thoughts.isConnected) this.body.before(this.thoughts);
  }

  showCalls() {
    this.calls.replaceChildren(...(this.turn.tool_calls ?? []).map(({ function: { name, arguments: text } }) => {
      const summary = element("summary", "", "Calls ", element("code", "", name));
      const shown = element("details", "call", summary, element("pre", "", indented(text)));
      shown.open = true;
      return shown;
    }));
  }

  drawFigures() {
    if (this.live) this.turn.figures = this.figuresNow();
    this.figures.replaceChildren(...(this.turn.figures ?? []).map(([name, value]) =>
      element("div", "", element("dt", "", name), element("dd", "", String(value)))));
  }

  figuresNow() {
    const { first, last, count, recycled, proposed, accepted } = this.live;
    if (!count) return [];
    const seconds = (last - first) / 1000;
    const speed = this.usage ? this.usage.tokens_per_second : seconds > 0 ? (count - 1) / seconds : 0;
    const rate = this.usage ? this.usage.acceptance_rate : proposed ? accepted / proposed : null;
    const rows = [["tokens", count], ["tokens/s", speed.toFixed(1)]];
    if (recycled || proposed) rows.push(["recycled", percent(recycled / count)]);
    if (rate !== null && proposed) rows.push(["accepted", percent(rate)]);
    if (this.usage) rows.push(["first token", `${Math.round(1000 * this.usage.time_to_first_token_s)} ms`]);
    return rows;
  }

  // Asks for the answer after `turns`; one that has text already goes on where it was cut.
  async run(turns, signal) {
    this.live = { count: 0, recycled: 0, proposed: 0, accepted: 0 };
    this.usage = undefined;
    this.pause = FRAME;
    this.card.querySelector(".error")?.remove();
    this.body.classList.add("running");
    try {
      const [path, body] = await request(this.turn.strategy, turns, this.turn, signal);
      const response = await call(path, body, signal);
      for await (const event of events(response)) {
        if (event.choices.length) this.add(event.choices[0], event.recycle);
        if (event.usage) this.usage = event.usage.recycle;
      }
    } catch (error) {
      this.turn.reason = error.name === "AbortError" ? "stopped" : "error";
      this.card.append(element("p", "error", this.turn.reason === "stopped" ? "stopped" : error.message));
    } finally {
      this.show();
      this.turn.runs = runsOf(this.kinds);
      this.body.classList.remove("running");
    }
  }

  get isEmpty() {
    return !this.turn.content && !this.turn.tool_calls?.length;
  }

  get isCut() {
    return this.turn.content !== "" && ["length", "stopped", "error"].includes(this.turn.reason);
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // arguments that are not whole yet
  }
}

function compare(full, other) {
  if (!full.usage || !other.usage || !full.usage.tokens_per_second) return;
  const ratio = other.usage.tokens_per_second / full.usage.tokens_per_second;
  const same = full.turn.content === other.turn.content ? "same text" : "another text";
  other.title.append(element("span", "faster", `${ratio.toFixed(2)}× full this time, ${same}`));
}

function scrollDown() {
  const box = $("scroll");
  if (box.scrollHeight - box.scrollTop - box.clientHeight < 160) box.scrollTop = box.scrollHeight;
}
