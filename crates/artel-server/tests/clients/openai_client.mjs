// The official npm client against a running server: `node openai_client.mjs http://127.0.0.1:8000`.

import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.argv[2].replace(/\/$/, "");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: process.argv[3] ?? "none" });
const question =
  "Maria has 14 pencils. She buys 3 boxes with 8 pencils in each. How many pencils does Maria have now?";
const messages = [{ role: "user", content: question }];

const models = await client.models.list();
assert.ok(models.data[0].id);

const whole = await client.chat.completions.create({ model: "default", messages, temperature: 0 });
const text = whole.choices[0].message.content;
assert.ok(text.endsWith("#### 38"), text);

const stream = await client.chat.completions.create({
  model: "default", messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
let streamed = "";
let usage = null;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const completion = await client.completions.create({
  model: "default", prompt: "Tom has 3 apples and", max_tokens: 8, n: 2, temperature: 1, seed: 3,
});
assert.equal(completion.choices.length, 2);

await assert.rejects(
  client.chat.completions.create({ model: "default", messages, top_p: 2 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "top_p",
);
await assert.rejects(
  client.chat.completions.create({ model: "gpt-4", messages }),
  (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
);
console.log(`the openai client for npm works with ${models.data[0].id}`);
