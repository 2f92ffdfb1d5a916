// What the fields of a server's form say. Undefined is not sent: nobody said anything.
import type { FormField } from "./tools";

/** Of a list of choices, by the numbers of those that are selected; "" is the line that is none. */
export function chosen({ kind, choices }: Pick<FormField, "kind" | "choices">, selected: string[]): string | string[] | undefined {
  const found = selected.filter((one) => one !== "").map((one) => choices[Number(one)]?.[0] ?? "");
  return kind === "array" ? found : found[0];
}

/** Of a line of text. */
export function typed({ kind }: Pick<FormField, "kind">, text: string): number | string | string[] | undefined {
  if (kind === "array") return text.split(",").map((one) => one.trim()).filter(Boolean);
  if (kind !== "number" && kind !== "integer") return text;
  return text.trim() === "" ? undefined : Number(text);
}
