// A comparison as the fragment of the page's address. A browser does not send fragments to a server.

const VERSION = 1;
const PREFIX = "#c=";
export const MAX_LENGTH = 16_000;  // characters of a fragment
const MAX_TEXT = 8_000;
const MAX_STACK = 4;
export const MAX_COLUMNS = 4;
const SAMPLING = ["max_tokens", "temperature", "top_p", "seed"];
const COLOURS = ["check", "grounding", "none"];

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const toText = (value, limit = MAX_TEXT) => ["string", "number"].includes(typeof value) ? String(value).slice(0, limit) : "";

// An uploaded image is never part of a link.
export const describePicture = (picture) => {
  if (picture === null) return null;
  if (picture.kind === "upload") return {upload: true};
  return picture.kind === "sample" ? {sample: picture.name} : {url: picture.url};
};

// A number as text. A field for numbers takes no other text.
const toNumberText = (value) => Number.isFinite(Number(toText(value, 32))) ? toText(value, 32) : "";

// Returns the fragment, or null where it would be too long.
export const encode = (state) => {
  const fragment = PREFIX + encodeURIComponent(JSON.stringify({v: VERSION, ...state})).replaceAll("'", "%27");
  return fragment.length > MAX_LENGTH ? null : fragment;
};

// Returns a state of known fields with bounded texts, or null where there is none. Raises an Error for other fragments.
export const decode = (fragment) => {
  if (fragment === "" || fragment === "#") return null;
  if (!fragment.startsWith(PREFIX) || fragment.length > MAX_LENGTH) throw new Error("The link is not one of this page.");
  let data;
  try {
    data = JSON.parse(decodeURIComponent(fragment.slice(PREFIX.length)));
  } catch {
    throw new Error("The link is damaged.");
  }
  if (!isObject(data) || data.v !== VERSION || !Array.isArray(data.columns)) throw new Error("The link is not one of this page.");
  const columns = data.columns.slice(0, MAX_COLUMNS).filter(isObject).map(({stack, parameters}) => ({
    stack: (Array.isArray(stack) ? stack : []).slice(0, MAX_STACK).map((name) => toText(name, 64)),
    parameters: isObject(parameters) ? parameters : {},
  }));
  const sampling = isObject(data.sampling) ? data.sampling : {};
  return {
    model: toText(data.model, 512),
    question: toText(data.question),
    colours: COLOURS.includes(data.colours) ? data.colours : "check",
    sampling: Object.fromEntries(SAMPLING.map((name) => [name, toNumberText(sampling[name])])),
    picture: decodePicture(data.picture),
    columns: columns.filter(({stack}) => stack.length),
  };
};

const decodePicture = (picture) => {
  if (!isObject(picture)) return null;
  if (picture.upload === true) return {upload: true};
  return "sample" in picture ? {sample: toText(picture.sample, 128)} : {url: toText(picture.url, 2_000)};
};
