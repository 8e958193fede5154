// --- the page ---------------------------------------------------------------------------------------------------

function say(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function button(label, onClick, className = "plain") {
  const made = element("button", className, label);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

function copyButton(text) {
  const made = button("Copy", async () => {
    made.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  });
  return made;
}

// The clipboard is for pages of this machine and for HTTPS; elsewhere a selection has to do.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", "unseen");
    area.value = text;
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

// --- attachments

const LARGEST_FILE = 1 << 20; // bytes; more than any context holds

async function attach(files) {
  say("");
  for (const file of files) {
    try {
      if (file.size > LARGEST_FILE) throw new Error("is larger than 1 MB");
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new Error("is not a text");
      state.files.push({ name: file.name, text: text.replace(/\r\n/g, "\n").trimEnd() });
    } catch (error) {
      const reason = error instanceof TypeError ? "is not a text in UTF-8" : error instanceof DOMException ? "cannot be read" : error.message;
      say(`${file.name} ${reason}: it is not attached.`);
    }
  }
  drawFiles();
  $("prompt").focus();
}

// What comes with words, as from a spreadsheet, is pasted as words; a picture alone is refused like any other file.
function pastedFiles(clipboard) {
  const files = [...clipboard.files];
  const others = files.filter(({ type }) => !type.startsWith("image/"));
  return others.length || !clipboard.types.includes("text/plain") ? files : [];
}

const hasFiles = (event) => event.dataTransfer.types.includes("Files") && state.model?.recycle.chat;
const showDrop = (isShown) => document.body.classList.toggle("dropping", isShown);

function drawFiles() {
  $("files").replaceChildren(...state.files.map((file) => {
    const remove = button("×", () => {
      state.files = state.files.filter((other) => other !== file);
      drawFiles();
      $("prompt").focus();
    });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    return element("li", "", element("span", "", file.name), remove);
  }));
}

// --- state of the whole

function stop() {
  state.running?.abort();
  state.running = null;
}

function draw() {
  $("send").textContent = state.running ? "Stop" : "Send";
  document.body.classList.toggle("busy", Boolean(state.running));
  document.body.classList.toggle("tinted", $("tint").checked);
}

function reset() {
  stop();
  state.chat = newChat();
  history.replaceState(null, "", location.pathname);
  say("");
  drawLog();
  drawChats();
  showChats(false);
  $("prompt").focus();
}

function showChats(isShown) {
  document.body.classList.toggle("with-chats", isShown);
  $("show-chats").setAttribute("aria-expanded", String(isShown));
}

function grow() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight + 2}px`;
}

function send() {
  const typed = $("prompt").value;
  if (!state.model || !(typed.trim() || state.files.length)) return;
  if (!areSettingsValid()) return;
  const { files } = state;
  $("prompt").value = "";
  state.files = [];
  say("");
  drawFiles();
  grow();
  ask(state.chat.turns, [asTurn(typed, files)], typed);
}

async function start() {
  const list = await callJson("/v1/models"); // which may ask for the token, once
  const [props, api] = await Promise.all(["/props", "/openapi.json"].map((path) => callJson(path)));
  state.model = list.data[0];
  const { recycle } = state.model;
  $("model").textContent = state.model.id;
  for (const name of recycle.strategies) $("strategy").append(new Option(name, name, false, name === recycle.default_strategy));
  $("compare").disabled = recycle.strategies.length < 2;
  for (const part of document.querySelectorAll(".chat-only")) part.hidden = !recycle.chat;
  makeSettings(props.default_generation_settings.params, api.components.schemas.ChatRequest.properties);
  $("hello").firstChild.textContent = recycle.chat ? "Say something" : "Begin a text";
  $("hello").lastChild.textContent = recycle.chat
    ? "Everything stays on the machine that runs the model, and chats in this browser."
    : "This model has no chat template: it continues what you write. Everything stays on the machine that runs it.";
  $("prompt").placeholder = recycle.chat ? "Message" : "Once upon a time";
  drawChats();
  if (location.hash) openChat(location.hash.slice(1));
  document.body.dataset.ready = "yes";
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.running) state.running.abort();
  else send();
});
$("prompt").addEventListener("input", grow);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "ArrowUp" && !$("prompt").value) {
    const edits = document.querySelectorAll(".asked .actions button:last-child");
    if (edits.length) event.preventDefault();
    [...edits].at(-1)?.click();
  }
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!state.running) send(); // what is typed during an answer waits for its end
});
$("prompt").addEventListener("paste", (event) => {
  const files = pastedFiles(event.clipboardData);
  if (!files.length || !state.model?.recycle.chat) return;
  event.preventDefault();
  attach(files);
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return; // words that are dragged into a box
  event.preventDefault(); // otherwise the browser opens the file in place of the page
  showDrop(hasFiles(event));
});
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) showDrop(false); });
document.addEventListener("drop", (event) => {
  showDrop(false);
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  if (hasFiles(event)) attach(event.dataTransfer.files);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("with-chats")) showChats(false);
  else state.running?.abort();
});
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  await attach([...$("file").files]);
  $("file").value = "";
});
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", async () => {
  await importChats([...$("import-file").files]);
  $("import-file").value = "";
});
$("export-all").addEventListener("click", exportAll);
$("tint").addEventListener("change", draw);
$("reset").addEventListener("click", reset);
$("show-chats").addEventListener("click", () => showChats(!document.body.classList.contains("with-chats")));
$("show-settings").addEventListener("click", () => $("settings").showModal());
addEventListener("storage", drawChats);
start().catch((error) => {
  $("hello").firstChild.textContent = "No answer";
  $("hello").lastChild.textContent = error.message;
});
