// Form controls of strategies' parameters, built from their JSON schemas.

import {make, show} from "./dom.js";

const SCALARS = ["number", "integer", "string"];
const LONG_TEXT = 60;  // characters of a default that gets several lines

// A field that may be null has its default when it is empty.
const withoutNull = (schema) => {
  const variants = (schema.anyOf ?? []).filter(({type}) => type !== "null");
  return variants.length === 1 ? {...schema, ...variants[0], anyOf: undefined} : schema;
};

export const findKind = (schema) => {
  if (schema.enum || Object.hasOwn(schema, "const")) return "choice";
  if (schema.type === "boolean" || SCALARS.includes(schema.type)) return schema.type;
  return schema.type === "array" && SCALARS.includes(schema.items?.type) ? "list" : "json";
};

const toText = (value, kind) => {
  if (value === null || value === undefined) return "";
  return kind === "list" && Array.isArray(value) ? value.join(", ") : kind === "json" ? JSON.stringify(value) : String(value);
};

const parseNumber = (text, type) => {
  const value = Number(text);
  if (!text.trim() || !Number.isFinite(value)) throw new Error(`"${text}" is no number.`);
  if (type === "integer" && !Number.isInteger(value)) throw new Error(`"${text}" is no integer.`);
  return value;
};

const describeBounds = ({minimum, maximum, exclusiveMinimum, exclusiveMaximum, minItems, maxItems, maxLength}) => [
  minimum !== undefined && `at least ${minimum}`, exclusiveMinimum !== undefined && `above ${exclusiveMinimum}`,
  maximum !== undefined && `at most ${maximum}`, exclusiveMaximum !== undefined && `below ${exclusiveMaximum}`,
  minItems !== undefined && `at least ${minItems} items`, maxItems !== undefined && `at most ${maxItems} items`,
  maxLength !== undefined && `at most ${maxLength} characters`,
].filter(Boolean).join(", ");

const NOTES = {integer: "integer", list: "separated by commas", json: "JSON"};

const createInput = (kind, schema, value) => {
  const fallback = toText(schema.default, kind);
  if (kind === "boolean") return make("input", {type: "checkbox", checked: value === undefined ? schema.default === true : value === "true"});
  if (kind === "choice") {
    const choices = (schema.enum ?? [schema.const]).map((item) => make("option", {value: String(item), textContent: String(item)}));
    const select = make("select", {}, ...choices);
    select.value = value ?? fallback;
    if (select.selectedIndex < 0) select.value = fallback;
    return select;
  }
  if (kind === "json" || (kind === "string" && fallback.length > LONG_TEXT))
    return make("textarea", {rows: 3, placeholder: fallback, value: value ?? ""});
  const input = make("input", {type: ["number", "integer"].includes(kind) ? "number" : "text", placeholder: fallback});
  if (input.type === "number")
    Object.assign(input, {min: schema.minimum ?? schema.exclusiveMinimum ?? "", max: schema.maximum ?? "", step: kind === "integer" ? 1 : "any"});
  input.value = value ?? "";
  return input;
};

let controls = 0;

class Control {
  constructor(strategy, field, rawSchema, text) {
    Object.assign(this, {strategy, field, schema: withoutNull(rawSchema)});
    this.kind = findKind(this.schema);
    const id = `parameter-${++controls}`;
    this.input = createInput(this.kind, this.schema, text);
    this.problem = make("small", {id: `${id}-problem`, className: "failed", role: "alert", hidden: true});
    const fallback = toText(this.schema.default, this.kind) || "none";
    const notes = [NOTES[this.kind], describeBounds(this.schema), `default ${fallback}`].filter(Boolean).join(", ");
    const help = make("small", {id: `${id}-help`, textContent: `${this.schema.description ?? ""} (${notes})`});
    Object.assign(this.input, {id, title: this.schema.description ?? ""});
    this.input.setAttribute("aria-describedby", `${help.id} ${this.problem.id}`);
    this.node = make("div", {className: "field"}, make("label", {htmlFor: id, textContent: `${strategy}.${field}`}), this.input, this.problem, help);
  }
  get text() {  // undefined for the default
    if (this.kind === "boolean") return this.input.checked === (this.schema.default === true) ? undefined : String(this.input.checked);
    const {value} = this.input;
    return value === "" || (this.kind === "choice" && value === toText(this.schema.default)) ? undefined : value;
  }
  // The value to send, or undefined for the default. Raises an Error where the text has another type.
  read() {
    if (this.input.validity.badInput) throw new Error("This is no number.");
    const {text, kind, schema} = this;
    if (text === undefined || kind === "string") return text;
    if (kind === "boolean") return text === "true";
    if (kind === "choice") return (schema.enum ?? [schema.const]).find((item) => String(item) === text);
    if (kind === "json") return JSON.parse(text);
    if (kind !== "list") return parseNumber(text, kind);
    const items = text.split(",").map((item) => item.trim());
    return schema.items.type === "string" ? items : items.map((item) => parseNumber(item, schema.items.type));
  }
  fail(message) {
    show(this.problem, message);
    this.input.ariaInvalid = message ? "true" : "false";
  }
}

export class ParameterForm {
  constructor(node, onChange) {
    Object.assign(this, {node, controls: [], texts: new Map()});
    this.list = node.querySelector("div");
    node.addEventListener("change", () => {
      for (const control of this.controls) this.remember(control);
      onChange();
    });
    node.querySelector(".reset").addEventListener("click", () => {
      this.texts.clear();
      this.show(this.strategies);
      onChange();
    });
  }
  remember(control) {
    const key = `${control.strategy}.${control.field}`;
    if (control.text === undefined) this.texts.delete(key);
    else this.texts.set(key, control.text);
    control.fail(null);
  }
  show(strategies) {
    this.strategies = strategies;
    this.controls = [...new Set(strategies)].flatMap(({name, parameters}) => Object.entries(parameters.properties ?? {})
      .map(([field, schema]) => new Control(name, field, schema, this.texts.get(`${name}.${field}`))));
    this.list.replaceChildren(...this.controls.map(({node}) => node));
    this.node.hidden = !this.controls.length;
  }
  // Values by strategy, of the fields that differ from their defaults. `isValid` is false where a text has another type.
  read({reports = false} = {}) {
    const values = {};
    let isValid = true;
    for (const control of this.controls) {
      if (reports) control.fail(null);
      try {
        const value = control.read();
        if (value !== undefined) (values[control.strategy] ??= {})[control.field] = value;
      } catch (error) {
        if (reports) this.fail(control, error.message);
        isValid = false;
      }
    }
    return {values, isValid};
  }
  // Set values from a link. Names that no schema has are ignored, and so are texts for numbers. The server validates the rest.
  set(values) {
    this.texts.clear();
    for (const {name, parameters} of this.strategies)
      for (const [field, schema] of Object.entries(parameters.properties ?? {})) {
        const given = Object.hasOwn(values, name) ? values[name] : null;
        if (given === null || typeof given !== "object" || !Object.hasOwn(given, field)) continue;
        const kind = findKind(withoutNull(schema)), text = toText(given[field], kind);
        if (!["number", "integer"].includes(kind) || Number.isFinite(Number(text))) this.texts.set(`${name}.${field}`, text);
      }
    this.show(this.strategies);
  }
  // Show a message of the server at the field that `param` names, if it is here.
  showError(param, message) {
    const control = this.controls.find(({strategy, field}) => `${param}.`.startsWith(`decoding.${strategy}.${field}.`));
    if (control) this.fail(control, message);
    return control !== undefined;
  }
  fail(control, message) {
    control.fail(message);
    this.node.open = true;
  }
}
