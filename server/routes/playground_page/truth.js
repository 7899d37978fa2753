// The objects of a sample image are known. This finds the known objects that an answer names.

const escapePattern = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

export class Truth {
  // words: category -> its singular and plural
  constructor(words) {
    this.names = new Map(Object.entries(words).flatMap(([name, forms]) => forms.map((form) => [form.toLowerCase(), name])));
    const forms = [...this.names.keys()].sort((one, other) => other.length - one.length).map(escapePattern);  // longest first
    this.pattern = forms.length ? new RegExp(`(?<![\\p{L}\\p{N}])(?:${forms.join("|")})(?![\\p{L}\\p{N}])`, "giu") : null;
  }
  // Offsets count code points, as those of claims.
  find(text) {
    if (!this.pattern) return [];
    return [...text.matchAll(this.pattern)]
      .filter(({index}) => !/\b(?:no|not|without)\s+(?:an?\s+|any\s+)?$/i.test(text.slice(0, index)))
      .map(({0: found, index}) => {
        const start = [...text.slice(0, index)].length;
        return {name: this.names.get(found.toLowerCase()), start, end: start + [...found].length};
      });
  }
}

export const judge = (mentions, objects) => {
  const named = new Set(mentions.map(({name}) => name)), real = Object.keys(objects);
  const invented = [...named].filter((name) => !Object.hasOwn(objects, name));
  return {invented, found: real.filter((name) => named.has(name)), missed: real.filter((name) => !named.has(name))};
};

// An answer to a question about one object has no count.
export const describeVerdict = ({invented, found, missed}) => {
  const verdict = invented.length ? `invents ${invented.join(", ")}` : "invents none";
  if (invented.length + found.length < 2) return `This answer ${verdict}.`;
  return `Names ${found.length} of ${found.length + missed.length} kinds of objects in the image, and ${verdict}.`;
};

export const describeObjects = (objects) =>
  `In this image: ${Object.entries(objects).map(([name, count]) => count > 1 ? `${name} (${count})` : name).join(", ")}.`;
