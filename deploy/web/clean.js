// The cleaning of predictor.py, by Python's own tables of characters, and its sentences for a text that is not labelled.

const SPECIAL = 1, SPACE = 2, CASED = 4, IGNORABLE = 8;
const SIGMA = 0x3a3;

/** One byte of classes a code point, from tables of [first, last]. */
export function classes(named) {
  const found = new Uint8Array(0x110000);
  for (const [bit, ranges] of named) {
    for (const [first, last] of ranges) for (let point = first; point <= last; point++) found[point] |= bit;
  }
  return found;
}

export class Cleaner {
  constructor(tables, steps, stopWords) {
    this.classes = classes([[SPECIAL, tables.special], [SPACE, tables.space], [CASED, tables.cased],
      [IGNORABLE, tables.ignorable]]);
    this.lower = new Map(tables.lower);
    this.steps = steps;
    this.stopWords = new Set(stopWords);
  }

  is(bit, point) {
    return (this.classes[point] & bit) !== 0;
  }

  /** What is wrong with a text, "" if nothing is: the records' `error`. */
  problem(text) {
    const points = Array.from(text, (char) => char.codePointAt(0));
    if (points.some((point) => point >= 0xd800 && point < 0xe000)) {
      return "holds half of a character (a lone surrogate)";
    }
    if (points.includes(0)) return "holds a NUL byte";
    return points.every((point) => this.is(SPACE, point)) ? "has an empty text" : "";
  }

  /** str.lower(): a capital sigma that ends a word becomes another letter than one within it. */
  lowered(points) {
    const made = [];
    for (let at = 0; at < points.length; at++) {
      const point = points[at];
      if (point === SIGMA) made.push(this.endsWord(points, at) ? "ς" : "σ");
      else made.push(this.lower.get(point) ?? String.fromCodePoint(point));
    }
    return made.join("");
  }

  endsWord(points, at) {
    const next = (from, step) => {
      let place = from + step;
      while (place >= 0 && place < points.length && this.is(IGNORABLE, points[place])) place += step;
      return place >= 0 && place < points.length && this.is(CASED, points[place]);
    };
    return next(at, -1) && !next(at, 1);
  }

  words(text) {
    const words = [];
    let word = "";
    for (const char of text) {
      const point = char.codePointAt(0);
      if (this.is(SPACE, point) || (this.steps.REMOVE_SPECIAL && this.is(SPECIAL, point))) {
        if (word) words.push(word);
        word = "";
      } else {
        word += char;
      }
    }
    if (word) words.push(word);
    return words;
  }

  clean(text) {
    const lowered = this.steps.LOWER_CASE ? this.lowered(Array.from(text, (char) => char.codePointAt(0))) : text;
    const words = this.words(lowered);
    return (this.steps.REMOVE_STOP_WORDS ? withoutStopWords(words, this.stopWords) : words).join(" ");
  }
}

/** As Sastrawi's remover leaves them: it deletes the first equal word, and does not look at the word behind a hit. */
function withoutStopWords(words, stopWords) {
  const kept = [], places = new Map();
  for (let at = 0; at < words.length;) {
    const hit = stopWords.has(words[at]);
    for (const word of words.slice(at, at + 1 + hit)) {
      if (stopWords.has(word)) {
        if (!places.has(word)) places.set(word, []);
        places.get(word).push(kept.length);
      }
      kept.push(word);
    }
    if (hit) kept[places.get(words[at]).shift()] = null;
    at += 1 + hit;
  }
  return kept.filter((word) => word !== null);
}
