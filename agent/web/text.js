// Text from a model, a file or a tool, made fit to be shown, and numbers made readable. Must not know the page.

// Direction overrides and separators can make a line read as something it is not.
const DECEPTIVE = /[\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]|(?![\t\n])\p{Cc}/gu;
const UNSEEN = /(?![\t\n ])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/gu;

// Control characters but tab and new line become visible signs.
export function neutral(text) {
  return text.replace(/\r\n/g, "\n").replace(DECEPTIVE, escaped);
}

// Text that a user is to approve: every character that cannot be seen is spelled out.
export function exact(text) {
  return text.replace(UNSEEN, escaped);
}

export function oneLine(text, maxChars) {
  const line = neutral(text.slice(0, 4 * maxChars).replace(/\s+/g, " ").trim());
  return line.length <= maxChars ? line : `${line.slice(0, maxChars - 1)}…`;
}

function escaped(character) {
  const code = character.codePointAt(0);
  const hex = code.toString(16);
  if (code < 0x100) return `\\x${hex.padStart(2, "0")}`;
  return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
}

export function count(number) {
  return Math.round(number).toLocaleString("en-US");
}

export function counted(number, noun, plural = `${noun}s`) {
  return `${count(number)} ${number === 1 ? noun : plural}`;
}

export function ago(unixSeconds) {
  const seconds = Date.now() / 1000 - unixSeconds;
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return new Date(unixSeconds * 1000).toISOString().slice(0, 10);
}

// Where the input of a turn came from, in the order of the meter: [key, what it is called, tokens].
export function origins(usage) {
  return [
    ["from_memory", "from memory", usage.from_memory],
    ["from_disk", "from disk", usage.from_disk],
    ["new", "new", usage.new],
    ["prefilled_again", "prefilled again", usage.prefilled_again],
  ];
}

// Every token of the input by where it came from, the output, the context and the seconds.
export function usageLine(usage) {
  const sources = origins(usage).filter(([, , tokens]) => tokens).map(([key, name, tokens]) => {
    const why = key === "prefilled_again" && usage.why ? ` (${neutral(usage.why)})` : "";
    return `${count(tokens)} ${name}${why}`;
  });
  const seconds = [["load", usage.load_s], ["prefill", usage.prefill_s], ["decode", usage.decode_s], ["tools", usage.tools_s]]
    .filter(([, value]) => value >= 0.005).map(([name, value]) => `${name} ${value.toFixed(2)} s`);
  return [
    `${count(usage.input_tokens)} tokens in${sources.length ? ` (${sources.join(", ")})` : ""}, ${count(usage.output_tokens)} out`,
    `context ${count(usage.context_used)} of ${count(usage.context_limit)}`,
    ...(seconds.length ? [seconds.join(", ")] : []),
  ].join(" · ");
}
