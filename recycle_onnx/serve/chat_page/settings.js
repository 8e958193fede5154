// --- settings ---------------------------------------------------------------------------------------------------
// The server says which ones there are (/props), what they mean and which values they take (/openapi.json).

const NOT_SHOWN = new Set(["strategy", "n_predict"]); // which have a place of their own
const OUR_NAMES = { repeat_penalty: "repetition_penalty" }; // for what llama.cpp calls otherwise

function makeSettings(defaults, schema) {
  // A seed has no default: one is drawn for each message.
  for (const [theirs, value] of Object.entries({ ...defaults, seed: "random" })) {
    const name = OUR_NAMES[theirs] ?? theirs;
    if (!NOT_SHOWN.has(theirs) && schema[name]) $("samplers").append(settingView(name, value, schema[name]));
  }
  $("limit").placeholder = defaults.n_predict;
  const kept = stored(SETTINGS) ?? {};
  for (const field of settingFields()) {
    if (typeof kept[field.id] === "string") field.value = kept[field.id];
    field.addEventListener("change", keepSettings);
  }
  if (!$("strategy").value) $("strategy").value = state.model.recycle.default_strategy;
}

const settingFields = () => [...$("settings").querySelectorAll("input, textarea, select"), $("strategy")];
const keepSettings = () => store(SETTINGS, Object.fromEntries(settingFields().map((field) => [field.id, field.value])));

function settingView(name, value, about) {
  const kind = about.anyOf.find(({ type }) => type !== "null");
  const isNumber = kind.type === "number" || kind.type === "integer";
  const field = element(isNumber ? "input" : "textarea");
  field.id = name;
  field.dataset.setting = isNumber ? "number" : name === "stop" ? "lines" : "json";
  if (isNumber) {
    field.type = "number";
    field.step = kind.type === "integer" ? 1 : "any";
    if (Math.abs(kind.minimum) < 1e9) field.min = kind.minimum;
    if (Math.abs(kind.maximum) < 1e9) field.max = kind.maximum;
    field.placeholder = value ?? "";
  } else {
    field.rows = 2;
    field.placeholder = name === "stop" ? "one per line" : '{"token id": bias}';
  }
  const help = element("small", "", about.description);
  help.id = `${name}-help`;
  field.setAttribute("aria-describedby", help.id);
  return element("label", isNumber ? "" : "tall", element("span", "", name.replaceAll("_", " "), help), field);
}

// Returns the settings that hold something, as a request has them.
function readSettings() {
  const settings = $("limit").value === "" ? {} : { max_tokens: Number($("limit").value) };
  for (const field of $("settings").querySelectorAll("[data-setting]")) {
    if (field.value.trim() === "") continue;
    if (field.dataset.setting === "number") settings[field.id] = Number(field.value);
    else if (field.dataset.setting === "lines") settings[field.id] = field.value.split("\n").filter(Boolean);
    else settings[field.id] = JSON.parse(field.value);
  }
  if (settings.tools?.length) settings.tool_choice = $("tool_choice").value;
  return settings;
}

function areSettingsValid() {
  for (const field of $("settings").querySelectorAll("[data-setting=json]")) {
    try {
      if (field.value.trim()) JSON.parse(field.value);
      field.setCustomValidity("");
    } catch (error) {
      field.setCustomValidity(`This is not JSON: ${error.message}`);
    }
  }
  const wrong = settingFields().find((field) => !field.checkValidity());
  if (!wrong) return true;
  $("settings").showModal();
  wrong.reportValidity();
  return false;
}

function clearSettings() {
  for (const field of $("settings").querySelectorAll("[data-setting], #limit")) field.value = field.defaultValue;
  $("tool_choice").value = "auto";
  keepSettings();
}

$("clear-settings").addEventListener("click", clearSettings);
