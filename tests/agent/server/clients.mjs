// Turns with a tool call by the unmodified JavaScript clients. Reads {url, token, model, system, tools, prompt, long} from
// stdin and writes one line of JSON a case: {"case", "problem"}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.argv[2], "package.json"));
const { OpenAI } = require("openai");
const agents = require("@openai/agents");
const given = JSON.parse(readFileSync(0, "utf8"));
const client = new OpenAI({ baseURL: `${given.url}/v1`, apiKey: given.token, maxRetries: 0 });
const result = "net/fetcher.py:5 def load_page";

function check(holds, what) {
  if (!holds) throw new Error(what);
}

async function cased(name, run) {
  let problem = null;
  try {
    await run();
  } catch (error) {
    problem = String(error.stack ?? error);
  }
  console.log(JSON.stringify({ case: name, problem }));
}

const fields = { model: given.model, instructions: given.system, tools: given.tools };

await cased("openai: responses.stream with a tool call", async () => {
  const first = client.responses.stream({ ...fields, input: given.prompt });
  let streamed = "";
  first.on("response.function_call_arguments.delta", (event) => (streamed += event.delta));
  const call = (await first.finalResponse()).output.find((item) => item.type === "function_call");
  check(call?.name === "find_symbol" && streamed === call.arguments, `${JSON.stringify(call)} and ${streamed}`);
  const input = [{ type: "function_call_output", call_id: call.call_id, output: result }];
  const second = client.responses.stream({ ...fields, input, previous_response_id: (await first.finalResponse()).id });
  check((await second.finalResponse()).output_text.includes("net/fetcher.py:5"), "no answer");
});

await cased("openai: responses.stream with a call that is wanted", async () => {
  const stream = client.responses.stream({ ...fields, input: given.long, tool_choice: "required", max_output_tokens: 200 });
  const pieces = [];
  stream.on("response.function_call_arguments.delta", (event) => pieces.push(event.delta));
  const { output, status } = await stream.finalResponse();
  const calls = output.filter((item) => item.type === "function_call");
  check(status === "completed" && calls.length > 0, `${status}: ${JSON.stringify(output)}`);
  check(calls.every((call) => given.tools.some((tool) => tool.name === call.name)), JSON.stringify(calls));
  check(pieces.length > calls.length && pieces.join("") === calls.map((call) => call.arguments).join(""), `${pieces}`);
});

await cased("openai: responses.stream with a long prompt", async () => {
  const stream = client.responses.stream({ model: given.model, input: given.long, max_output_tokens: 4 });
  check((await stream.finalResponse()).output.length > 0, "no output");
});

await cased("openai: responses.stream of the agent", async () => {
  const stream = client.responses.stream({ model: "holdfast-agent", input: given.prompt });
  check((await stream.finalResponse()).status === "completed", "not completed");
});

await cased("openai: chat.completions.stream with a tool call", async () => {
  const tools = given.tools.map(({ type, ...rest }) => ({ type, function: rest }));
  const messages = [{ role: "system", content: given.system }, { role: "user", content: given.prompt }];
  const stream = client.chat.completions.stream({ model: given.model, messages, tools });
  const choice = (await stream.finalChatCompletion()).choices[0];
  check(choice.message.tool_calls?.[0].function.name === "find_symbol", JSON.stringify(choice));
});

await cased("agents: a streamed run with a tool call", async () => {
  agents.setDefaultOpenAIClient(client);
  agents.setTracingDisabled(true);
  const find = given.tools.find((tool) => tool.name === "find_symbol");
  const { type, name, description, parameters } = find;
  const tool = agents.tool({ name, description, parameters, strict: false, execute: async () => result });
  const agent = new agents.Agent({ name: "tester", model: given.model, instructions: given.system, tools: [tool] });
  for (const input of [given.prompt, given.long]) {
    const stream = await agents.run(agent, input, { stream: true });
    for await (const _ of stream);
    await stream.completed;
    check(input === given.long || stream.finalOutput.includes("net/fetcher.py:5"), stream.finalOutput);
  }
  const wanted = agent.clone({ modelSettings: { toolChoice: "required" } });
  const { newItems } = await agents.run(wanted, given.prompt);
  check(newItems.some((item) => item.type === "tool_call_output_item"), JSON.stringify(newItems));
});
