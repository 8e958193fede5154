// OpenAI's client for JavaScript: node openai.mjs URL. What it gets is printed as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "the cat" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 8 } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "get_weather", parameters } };
const asked = { model: "any", messages, max_tokens: 200, seed: 7, temperature: 0 };
const withTools = { ...asked, tools: [weather], tool_choice: "required", parallel_tool_calls: false };

const chat = await client.chat.completions.create(asked);

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
}

const called = await client.chat.completions.create(withTools);
const streamedCall = await client.chat.completions.stream(withTools).finalChatCompletion();
const call = called.choices[0].message.tool_calls[0];
const results = [called.choices[0].message, { role: "tool", tool_call_id: call.id, content: "rain" }];
const afterwards = await client.chat.completions.create({ ...asked, messages: [...messages, ...results] });

const format = { type: "json_schema", json_schema: { name: "place", schema: parameters, strict: true } };
const structured = await client.chat.completions.parse({ ...asked, response_format: format });

const described = { model: "any", input: "the cat", max_output_tokens: 200, temperature: 0 };
const response = await client.responses.create(described);
const events = [];
for await (const event of await client.responses.create({ ...described, stream: true })) events.push(event.type);

const embedded = await client.embeddings.create({ model: "any", input: ["the cat", "a dog"] });
const refused = await client.chat.completions
  .create({ ...asked, temprature: 1 })
  .catch((error) => ({ kind: error.constructor.name, status: error.status, param: error.param }));

console.log(
  JSON.stringify({
    chat: chat.choices[0].message.content,
    streamed,
    call: call.function,
    streamedCall: streamedCall.choices[0].message.tool_calls[0].function,
    afterwards: afterwards.choices[0].finish_reason,
    structured: structured.choices[0].message.parsed ?? JSON.parse(structured.choices[0].message.content),
    response: response.output_text,
    events,
    embedded: embedded.data.map((one) => one.embedding),
    refused,
  }),
);
