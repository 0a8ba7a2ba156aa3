// From a text to its record, as predict.py writes it: whatever runs the model is passed in.
import { Cleaner } from "./clean.js";
import { WordPiece } from "./wordpiece.js";

const round = (value) => Math.round(value * 1e6) / 1e6;

export class Labels {
  /** `packed`: packed.json; `run`: an async function from token ids to logits. */
  constructor(packed, run) {
    this.cleaner = new Cleaner(packed.characters, packed.steps, packed.stop_words);
    this.tokenizer = new WordPiece(packed.tokenizer, packed.wordpiece);
    this.labels = packed.labels;
    this.run = run;
  }

  async record(text) {
    const error = this.cleaner.problem(text);
    if (error) return { error };
    const { ids, empty } = this.tokenizer.encode(this.cleaner.clean(text));
    const logits = Array.from(await this.run(ids));
    if (!logits.every(Number.isFinite)) return { error: "the model's answer is no number" };
    const note = empty ? { note: "nothing is left of the text after cleaning" } : {};
    if (!this.labels) return { value: round(logits[0]), ...note };
    const most = Math.max(...logits), powers = logits.map((value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b, 0), chances = powers.map((value) => value / sum);
    return {
      label: this.labels[chances.indexOf(Math.max(...chances))],
      probabilities: Object.fromEntries(this.labels.map((label, i) => [label, round(chances[i])])), ...note,
    };
  }
}
