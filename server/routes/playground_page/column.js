// One column: a stack of strategies with parameters, and the answers of its conversation.

import {$, copyText, make, show} from "./dom.js";
import {ParameterForm} from "./parameters.js";
import {toCurl, toPython} from "./snippets.js";
import {Turn} from "./turn.js";

const MAX_STACK = 4;  // strategies

const createOption = ({name, summary, engines}) => {
  const missing = engines.find(({runs}) => !runs);
  const title = missing ? `Not on this engine: ${missing.reason}` : summary;
  return make("option", {value: name, textContent: name, title, disabled: missing !== undefined});
};

export class Column {
  // playground: what the columns share
  constructor(playground, stack) {
    Object.assign(this, {playground, stack, turns: [], controller: new AbortController()});
    this.node = make("article", {className: "card side"}, $("column").content.cloneNode(true));
    this.find = (selector) => this.node.querySelector(selector);
    this.parameters = new ParameterForm(this.find(".parameters"), () => playground.onChange());
    this.find(".stack").addEventListener("change", ({target}) => this.changeStack(target));
    this.find(".remove").addEventListener("click", () => playground.removeColumn(this));
    this.find(".curl").addEventListener("click", () => this.copy("curl", toCurl));
    this.find(".python").addEventListener("click", () => this.copy("Python", toPython));
    this.showStack();
  }
  get chosen() { return this.stack.map((name) => this.playground.strategies.find((strategy) => strategy.name === name)).filter(Boolean); }
  get name() { return this.stack.join("+"); }
  get last() { return this.turns.at(-1); }
  setNumber(number, isOnly) {
    this.number = number;
    this.find("h2").textContent = `${number}. ${this.name}`;
    this.node.ariaLabel = `Column ${number}`;
    this.find(".remove").ariaLabel = `Remove column ${number}`;
    this.find(".remove").hidden = isOnly;
  }
  changeStack(select) {
    const place = [...this.find(".stack").querySelectorAll("select")].indexOf(select);
    this.stack.splice(place, 1, select.value);
    this.stack = this.stack.filter(Boolean);
    this.showStack();
    this.find(".stack").querySelectorAll("select")[Math.min(place, this.stack.length)]?.focus();
    this.playground.onChange();
  }
  // Show a list for each strategy of the stack, and one to add an inner strategy.
  showStack() {
    const names = [...this.stack, ""].slice(0, MAX_STACK);
    const selects = names.map((name, place) => {
      const none = make("option", {value: "", textContent: place < this.stack.length ? "remove" : "+ inner strategy"});
      const isOnly = place === 0 && this.stack.length === 1;
      const select = make("select", {ariaLabel: `Strategy ${place + 1}`}, ...(isOnly ? [] : [none]), ...this.playground.strategies.map(createOption));
      select.value = name;
      return select;
    });
    this.find(".stack").replaceChildren(this.find(".stack legend"), ...selects);
    show(this.find(".stack-problem"), null);
    this.find(".summary").textContent = this.chosen
      .map(({summary, votes}) => votes ? `${summary} It has no grounding.` : summary).join(" ");
    this.parameters.show(this.chosen);
    if (this.number) this.setNumber(this.number, this.find(".remove").hidden);
  }
  restore({stack, parameters}) {
    this.stack = stack;
    this.showStack();
    this.parameters.set(parameters);
  }
  // The fields that decide the answer, beside the messages; null where one cannot be read.
  readSettings(options) {
    const {colours, sampling, model} = this.playground.readShared();
    const {values, isValid} = this.parameters.read(options);
    if (!isValid || sampling === null) return null;
    const votes = this.chosen.some((strategy) => strategy.votes);
    const decoding = {strategy: this.name, trace: true, grounding: colours === "grounding" && !votes, check: colours === "check", ...values};
    return {model, decoding, ...sampling};
  }
  get conversation() { return this.turns.filter(({isAnswered}) => isAnswered).at(-1)?.messages ?? []; }
  buildRequest(history, question, picture, settings) {
    const text = {type: "text", text: question};
    const content = history.length ? question : [{type: "image_url", image_url: {url: picture.url}}, text];
    return {...settings, messages: [...history, {role: "user", content}], stream: true};
  }
  // Ask a question: behind the earlier turns, or as the first one.
  async run(question, picture, follows, signal) {
    show(this.find(".stack-problem"), null);
    const settings = this.readSettings({reports: true}), history = follows ? this.conversation : [];
    if (!follows) this.clear();
    if (settings === null) return;
    const request = this.buildRequest(history, question, picture, settings);
    const {colours, truth} = this.playground.readShared();
    const turn = new Turn({request, question, colours, truth, objects: picture.objects, key: this.key(settings, picture),
      label: this.describe(settings, picture)});
    this.turns.at(-1)?.markOutdated(false);
    this.turns.push(turn);
    this.find(".turns").append(turn.node);
    const error = await turn.run(this.playground.api, AbortSignal.any([signal, this.controller.signal]));
    if (error?.param && this.last === turn && turn.key === this.key(this.readSettings(), this.playground.picture)) this.showError(error);
  }
  clear() {
    this.turns = [];
    this.find(".turns").replaceChildren();
  }
  showError({param, message}) {
    if (param === "decoding.strategy") show(this.find(".stack-problem"), message);
    else if (!this.parameters.showError(param, message)) this.playground.showFieldError(param, message);
  }
  key(settings, picture) { return JSON.stringify([settings, picture?.id]); }
  describe({decoding: {strategy, trace, grounding, check, ...parameters}, temperature, max_tokens, top_p, seed}, picture) {
    const changed = Object.entries(parameters).flatMap(([name, values]) =>
      Object.entries(values).map(([field, value]) => `${name}.${field}=${JSON.stringify(value)}`));
    const sampling = Object.entries({temperature, max_tokens, top_p, seed}).filter(([, value]) => value !== undefined)
      .map(([name, value]) => `${name}=${value}`);
    return [strategy, ...changed, ...sampling, picture.name].join(", ");
  }
  // An answer to other settings than those on the page is marked.
  refresh() {
    if (!this.last) return;
    this.last.markOutdated(this.key(this.readSettings(), this.playground.picture) !== this.last.key);
  }
  // The request of the last answer, or the one that Run sends where the settings have changed.
  copy(language, format) {
    const {question, picture} = this.playground, settings = this.readSettings({reports: true});
    if (settings === null) return;
    const isCurrent = this.last && this.key(settings, picture) === this.last.key;
    if (!isCurrent && !picture) {
      this.playground.panel.fail("Choose an image first.");
      return;
    }
    const request = isCurrent ? this.last.request : this.buildRequest([], question, picture, settings);
    copyText(`Column ${this.number} as ${language}`, format(location.origin, request));
  }
  remove() {
    this.controller.abort();
    this.node.remove();
  }
}
