// The AI SDK: node ai_sdk.mjs URL. What it gets is printed as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "recycle-onnx",
  baseURL: `${process.argv[2]}/v1`,
  supportsStructuredOutputs: true,
});
const asked = { model: provider("any"), prompt: "the cat", maxOutputTokens: 200, temperature: 0, seed: 7, maxRetries: 0 };
const cities = [];
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string().max(8) }),
  execute: async ({ city }) => {
    cities.push(city);
    return "rain";
  },
});

const { text } = await generateText(asked);
let streamed = "";
for await (const piece of streamText(asked).textStream) streamed += piece;

const tools = { get_weather: weather };
const steps = await generateText({ ...asked, tools, toolChoice: "required", stopWhen: stepCountIs(2) });
const streamedSteps = streamText({ ...asked, tools, toolChoice: "required" });
const { object } = await generateObject({ ...asked, schema: z.object({ animal: z.enum(["cat", "dog"]), legs: z.literal(4) }) });
const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("any"), values: ["the cat", "a dog"] });

console.log(
  JSON.stringify({
    text,
    streamed,
    steps: steps.steps.map((step) => step.toolCalls.map((call) => [call.toolName, call.input])),
    streamedCalls: (await streamedSteps.toolCalls).map((call) => [call.toolName, call.input]),
    cities,
    object,
    embeddings,
  }),
);
