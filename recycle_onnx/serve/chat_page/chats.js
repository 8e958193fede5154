// --- chats in this browser --------------------------------------------------------------------------------------
// Each is an entry of its own, so that a turn writes one chat and not all of them. A browser may refuse to store
// anything: the page then works without.

const CHAT = "recycle-onnx.chat.";
const SETTINGS = "recycle-onnx.settings";

function stored(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function store(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function storedKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT));
  } catch {
    return [];
  }
}

const isChat = (chat) => typeof chat?.id === "string" && Array.isArray(chat.turns);

function allChats() {
  return storedKeys().map(stored).filter(isChat).sort((one, other) => other.updated - one.updated);
}

function newChat() {
  const id = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", system: "", updated: Date.now(), turns: [] };
}

function titleOf(chat) {
  const first = chat.turns.find((turn) => turn.role === "user");
  return (first?.typed || first?.content || "Chat").trim().slice(0, 80);
}

function keepChat(chat) {
  if (!chat.turns.length) return forgetChat(chat.id);
  chat.title = titleOf(chat);
  chat.updated = Date.now();
  if (!store(CHAT + chat.id, chat)) say("The browser's storage is full: this chat is not kept. Export it, or delete others.");
  return drawChats();
}

function forgetChat(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch { /* nothing is stored, so there is nothing to forget */ }
  drawChats();
}

function drawChats() {
  $("chats").replaceChildren(...allChats().map((chat) => {
    const open = button(chat.title, () => openChat(chat.id), "open");
    if (chat.id === state.chat.id) open.setAttribute("aria-current", "true");
    const exporting = button("Export", () => exportChat(stored(CHAT + chat.id)), "plain");
    const deleting = button("Delete", () => deleteChat(chat), "plain");
    exporting.setAttribute("aria-label", `Export ${chat.title}`);
    deleting.setAttribute("aria-label", `Delete ${chat.title}`);
    return element("li", "", open, element("span", "chat-actions", exporting, deleting));
  }));
  $("no-chats").hidden = $("chats").childElementCount > 0;
  $("export-all").hidden = $("chats").childElementCount < 2;
}

function deleteChat(chat) {
  if (!confirm(`Delete “${chat.title}”? Nothing else keeps it.`)) return;
  if (chat.id === state.chat.id) {
    state.chat.isDeleted = true; // its answer in progress is not kept either
    reset();
  }
  forgetChat(chat.id);
}

function openChat(id) {
  if (id === state.chat.id) return showChats(false);
  const chat = stored(CHAT + id);
  if (!isChat(chat)) return reset();
  stop();
  state.chat = chat;
  $("system").value = chat.system;
  history.replaceState(null, "", `#${id}`);
  drawLog();
  drawChats();
  showChats(false);
  $("scroll").scrollTop = $("scroll").scrollHeight;
  return $("prompt").focus();
}
