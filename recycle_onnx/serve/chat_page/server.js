// --- talking to the server --------------------------------------------------------------------------------------

function headers() {
  const token = sessionStorage.getItem("token");
  return { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
}

function askToken() {
  return new Promise((resolve) => {
    $("ask").addEventListener("close", () => {
      sessionStorage.setItem("token", $("token").value);
      resolve();
    }, { once: true });
    $("ask").showModal();
  });
}

async function call(path, body, signal) {
  const options = body ? { method: "POST", body: JSON.stringify(body), signal } : { signal };
  const response = await fetch(path, { ...options, headers: headers() }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  });
  if (response.status === 401) {
    await askToken();
    return call(path, body, signal);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

const callJson = async (path, body, signal) => (await call(path, body, signal)).json();

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// What the template takes of a turn; all else in it is the page's own.
function message({ role, content, tool_calls, tool_call_id }) {
  return { role, content, ...(tool_calls?.length ? { tool_calls } : {}), ...(tool_call_id ? { tool_call_id } : {}) };
}

// Returns the path and body that ask for an answer after `turns`, or for more of `turn`, which was cut.
async function request(strategy, turns, turn, signal) {
  const shared = { ...readSettings(), model: state.model.id, stream: true, stream_options: { include_usage: true }, strategy };
  shared.seed ??= state.seed;
  const { tools, tool_choice, chat_template_kwargs, ...plain } = shared;
  const texts = "/v1/completions";
  if (!state.model.recycle.chat) return [texts, { ...plain, prompt: turns.at(-1).content + turn.content }];
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns.map(message)];
  const chat = { messages, ...(tools?.length ? { tools, tool_choice } : {}), ...(chat_template_kwargs ? { chat_template_kwargs } : {}) };
  if (!turn.content) return ["/v1/chat/completions", { ...plain, ...chat }];
  const { prompt } = await callJson("/apply-template", chat, signal);
  const { tokens } = await callJson("/tokenize", { content: prompt + turn.content }, signal);
  return [texts, { ...plain, prompt: tokens }];
}
