// BERT's tokenizer: normalized and cut by the packed tokenizer's own tables, then the longest pieces of the vocabulary.
import { classes } from "./clean.js";

const DROPPED = 1, APART = 2, BETWEEN = 4, ALONE = 8;
const HANGUL = 0xac00, HANGUL_END = 0xd7a3;

/** The two or three parts of a Korean syllable (Unicode, section 3.12). */
function hangulParts(point) {
  const place = point - HANGUL, tail = place % 28;
  const parts = [0x1100 + Math.floor(place / 588), 0x1161 + Math.floor((place % 588) / 28)];
  return String.fromCodePoint(...(tail ? [...parts, 0x11a7 + tail] : parts));
}

export class WordPiece {
  /** `model`: vocabulary (piece -> id), prefix, unknown, most (characters of a word), first, last, maxLength. */
  constructor(tables, model) {
    this.classes = classes([[DROPPED, tables.dropped], [APART, tables.apart], [BETWEEN, tables.between],
      [ALONE, tables.alone]]);
    this.mapped = new Map(tables.mapped);
    this.order = new Map(tables.order);
    this.model = model;
    this.vocabulary = new Map(Object.entries(model.vocabulary));
  }

  is(bit, char) {
    return (this.classes[char.codePointAt(0)] & bit) !== 0;
  }

  normalized(text) {
    let made = "";
    for (const char of text) {
      const point = char.codePointAt(0);
      if (this.is(DROPPED, char)) continue;
      if (this.is(APART, char)) made += ` ${char} `;
      else if (point >= HANGUL && point <= HANGUL_END) made += hangulParts(point);
      else made += this.mapped.get(point) ?? char;
    }
    return this.sorted(Array.from(made));
  }

  /** Neighbouring marks in the order of their combining classes. */
  sorted(chars) {
    const rank = (char) => this.order.get(char.codePointAt(0)) ?? 0;
    for (let start = 0; start < chars.length;) {
      let end = start;
      while (end < chars.length && rank(chars[end]) > 0) end++;
      if (end - start > 1) {
        chars.splice(start, end - start, ...chars.slice(start, end).sort((a, b) => rank(a) - rank(b)));
      }
      start = Math.max(end, start + 1);
    }
    return chars;
  }

  words(text) {
    const words = [];
    let word = [];
    const close = () => {
      if (word.length) words.push(word);
      word = [];
    };
    for (const char of this.normalized(text)) {
      if (this.is(BETWEEN, char)) close();
      else if (this.is(ALONE, char)) {
        close();
        words.push([char]);
      } else word.push(char);
    }
    close();
    return words;
  }

  /** Ids of a word: the longest piece first; the whole word is unknown if one place has no piece. */
  pieces(word) {
    const { prefix, unknown, most } = this.model;
    if (word.length > most) return [unknown];
    const found = [];
    for (let start = 0; start < word.length;) {
      let end = word.length, id;
      for (; end > start; end--) {
        id = this.vocabulary.get((start ? prefix : "") + word.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return [unknown];
      found.push(id);
      start = end;
    }
    return found;
  }

  /** {ids, empty}: of a cleaned text, cut to maxLength; `empty`: it has no token of its own. */
  encode(text) {
    const { first, last, maxLength } = this.model, room = maxLength - 2, ids = [];
    for (const word of this.words(text)) {
      ids.push(...this.pieces(word));
      if (ids.length >= room) break;
    }
    return { ids: [first, ...ids.slice(0, room), last], empty: ids.length === 0 };
  }
}
