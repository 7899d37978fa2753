// The page: the question, the sampling fields and the columns.

import {Api} from "./api.js";
import {Column} from "./column.js";
import {$, copyText, make, show} from "./dom.js";
import {CHECK_AUROC, CONFIRMED, VERIFY_IMAGES} from "./figures.js";
import {MAX_COLUMNS, decode, describePicture, encode} from "./link.js";
import {PicturePanel} from "./picture.js";
import {Truth} from "./truth.js";

const FIRST_SAMPLE = "living-room.png";  // plain decoding invents objects in it
const FIRST_COLUMNS = ["plain", "verify"];
const MORE_COLUMNS = ["vcd", "agla"];
const RETRY_SECONDS = 2;
const SAMPLING = ["max_tokens", "temperature", "top_p", "seed"];

class Playground {
  constructor() {
    Object.assign(this, {strategies: [], columns: [], model: null, running: null, truth: new Truth({})});
    this.api = new Api(() => $("key").value, () => { $("locked").hidden = false; });
    this.panel = new PicturePanel(this.api, () => this.onChange());
    this.retry = null;
  }
  get picture() { return this.panel.current; }
  get question() { return $("question").value.trim(); }

  // The settings that all columns share

  readShared() {
    const isReadable = SAMPLING.every((name) => !$(name).validity.badInput);
    const given = SAMPLING.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]);
    return {colours: $("colours").value, model: this.model, truth: this.truth, sampling: isReadable ? Object.fromEntries(given) : null};
  }
  checkSampling() {
    this.clearFieldErrors();
    const unreadable = SAMPLING.filter((name) => $(name).validity.badInput);
    unreadable.forEach((name) => this.showFieldError(name, "This is no number."));
    return unreadable.length === 0;
  }
  clearFieldErrors() {
    show($("sampling-problem"), null);
    for (const name of SAMPLING) $(name).ariaInvalid = "false";
  }
  showFieldError(param, message) {
    if (!SAMPLING.includes(param)) return;
    $(param).ariaInvalid = "true";
    $(param).setAttribute("aria-describedby", "sampling-problem");
    show($("sampling-problem"), `${param}: ${message}`);
  }
  onChange() {
    this.columns.forEach((column) => column.refresh());
    this.showButtons();
    this.store();
  }
  showButtons() {
    $("run").disabled = this.running !== null;
    $("stop").hidden = this.running === null;
    $("add").disabled = !this.strategies.length || this.columns.length >= MAX_COLUMNS;
    const canFollow = this.picture?.id === this.askedPicture && this.columns.some(({conversation}) => conversation.length);
    $("follow").disabled = this.running !== null || !canFollow;
    for (const legend of document.querySelectorAll("[data-colours]")) legend.hidden = legend.dataset.colours !== $("colours").value;
  }

  // The columns

  addColumn(stack) {
    const column = new Column(this, stack);
    this.columns.push(column);
    $("columns").append(column.node);
    this.numberColumns();
    return column;
  }
  removeColumn(column) {
    column.remove();
    this.columns = this.columns.filter((each) => each !== column);
    this.numberColumns();
    this.onChange();
    $("add").focus();
  }
  numberColumns() {
    this.columns.forEach((column, at) => column.setNumber(at + 1, this.columns.length === 1));
  }
  canRun(name) { return this.strategies.some((strategy) => strategy.name === name && strategy.engines.every(({runs}) => runs)); }

  // Answers

  async run(follows) {
    if (this.running) return;
    if (!this.model) await this.load();
    const {question} = this;
    if (!this.model || !this.checkSampling()) return;
    if (!question) {
      $("status").textContent = "Write a question first.";
      $("question").focus();
      return;
    }
    await this.panel.shown;
    if (this.running) return;
    if (!this.picture) {
      this.panel.fail("Choose an image first.");
      $("file").focus();
      return;
    }
    this.running = new AbortController();
    this.askedPicture = this.picture.id;
    this.showButtons();
    $("status").textContent = "";
    if (matchMedia("(max-width: 52rem)").matches) $("columns").scrollIntoView();
    this.store();
    const {picture, running: {signal}} = this;
    await Promise.allSettled(this.columns.map((column) => column.run(question, picture, follows, signal)));
    this.running = null;
    this.onChange();
  }

  // The link

  get state() {
    const {sampling} = this.readShared();
    return {
      model: this.model, question: $("question").value, colours: $("colours").value, sampling: sampling ?? {},
      picture: describePicture(this.picture),
      columns: this.columns.map((column) => ({stack: column.stack, parameters: column.parameters.read().values})),
    };
  }
  store() {
    if (!this.model) return null;  // a link that has not been restored stays
    const fragment = encode(this.state);
    if (fragment !== null) history.replaceState(null, "", fragment);
    return fragment;
  }
  copyLink() {
    const fragment = this.store();
    if (fragment === null) $("status").textContent = "The question and the parameters are too long for a link.";
    else copyText("Link to this comparison", location.href);
    if (this.picture?.kind === "upload")
      $("status").textContent = "The link does not contain your image. It asks for it.";
  }
  async restore(state) {
    this.running?.abort();
    if (state.model && state.model !== this.model)
      $("status").textContent = `The link is about the model ${state.model}. This server has ${this.model}.`;
    $("question").value = state.question;
    $("colours").value = state.colours;
    for (const [name, value] of Object.entries(state.sampling)) $(name).value = value;
    const known = state.columns.filter(({stack}) => stack.every((name) => this.canRun(name)));
    const unknown = state.columns.filter((column) => !known.includes(column)).map(({stack}) => stack.join("+"));
    if (unknown.length) show($("problem"), `This server cannot run these strategies of the link: ${unknown.join(", ")}.`);
    this.columns.forEach((column) => column.remove());
    this.columns = [];
    if (known.length) known.forEach((column) => this.addColumn(column.stack).restore(column));
    else this.addFirstColumns();
    this.showButtons();
    const {sample, url, upload} = state.picture ?? {};
    if (sample) await this.panel.chooseSample(sample, false);
    else if (url) await this.panel.chooseAddress(url, false);
    else this.panel.clear(upload ? "The link does not contain the image, which was a file of its author. Choose it." : "Choose an image.");
  }

  // Start

  addFirstColumns() {
    const names = FIRST_COLUMNS.filter((name) => this.canRun(name));
    (names.length ? names : [this.strategies[0].name]).forEach((name) => this.addColumn([name]));
  }
  async loadModel() {
    clearTimeout(this.retry);
    try {
      const [models, list] = await Promise.all([this.api.getJson("/v1/models"), this.api.getJson("/v1/strategies")]);
      this.strategies = list.data;
      this.model = models.data[0].id;
      show($("problem"), null);
      $("model").textContent = `Model: ${this.model}.`;
    } catch (error) {
      const isTemporary = error.status === 503;  // while the model is loaded
      show($("problem"), isTemporary ? `${error.message} The page tries again.` : error.message);
      if (isTemporary) this.retry = setTimeout(() => this.load(), 1000 * (error.retryAfter ?? RETRY_SECONDS));
    }
  }
  // Fill the page when the model is known: from the link, or with the first comparison.
  async fill() {
    if (!this.model) return;
    if (this.columns.length) {
      this.columns.forEach((column) => column.showStack());
      return;
    }
    try {
      const state = decode(location.hash);
      if (state !== null) {
        await this.restore(state);
        return;
      }
    } catch (error) {
      show($("problem"), error.message);
    }
    this.addFirstColumns();
    this.showButtons();
    const names = this.panel.samples.map(({name}) => name);
    if (names.length && !this.panel.choices) await this.panel.chooseSample(names.includes(FIRST_SAMPLE) ? FIRST_SAMPLE : names[0], false);
  }
  async loadSamples() {
    const {images, words} = await this.api.getJson("/samples");
    this.truth = new Truth(words);
    this.panel.showSamples(images);
  }
  async loadNotice() {
    const {notice, categories, command} = await this.api.getJson("/notice");
    if (!notice) return;
    $("notice").querySelector("summary").textContent = notice;
    $("notice").querySelector("p").replaceChildren(`It knows ${categories.join(", ")}. To serve a model for photographs: `,
      make("code", {textContent: command}));
    $("notice").hidden = false;
  }
  async start() {
    const results = await Promise.allSettled([this.loadNotice(), this.loadSamples()]);
    const failed = results.find(({status}) => status === "rejected");
    if (failed) show($("problem"), failed.reason.message);
    await this.load();
  }
  async load() {
    await this.loadModel();
    await this.fill();
  }
}

const playground = new Playground();
$("form").addEventListener("submit", (event) => { event.preventDefault(); playground.run(false); });
$("form").addEventListener("change", () => { playground.clearFieldErrors(); playground.onChange(); });
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  playground.run(false);
});
$("follow").addEventListener("click", () => playground.run(true));
$("stop").addEventListener("click", () => playground.running?.abort());
$("link").addEventListener("click", () => playground.copyLink());
$("add").addEventListener("click", () => {
  const used = playground.columns.map(({name}) => name);
  const names = [...MORE_COLUMNS, ...playground.strategies.map(({name}) => name)].filter((name) => playground.canRun(name));
  playground.addColumn([names.find((name) => !used.includes(name)) ?? names[0]]);
  playground.onChange();
});
$("dialog-close").addEventListener("click", () => $("dialog").close());
document.addEventListener("keydown", (event) => event.key === "Escape" && !$("dialog").open && playground.running?.abort());
$("key").addEventListener("change", () => playground.load());
addEventListener("hashchange", ({newURL}) => {
  try {
    const state = decode(new URL(newURL).hash);
    if (state !== null && playground.model) playground.restore(state);
  } catch (error) {
    show($("problem"), error.message);
  }
});
$("auroc").textContent = `On the scenes of docs/results.md, with the embedded model, ${CONFIRMED.hallucinated} % of the invented and ${CONFIRMED.real} % of the real objects are above it. That is an AUROC of ${CHECK_AUROC}.`;
$("study").textContent = `Of ${VERIFY_IMAGES.scenes} held-out scenes, verify names fewer invented objects than plain decoding in ${VERIFY_IMAGES.improved}, and more in ${VERIFY_IMAGES.worsened} (embedded model).`;
$("question").focus(); // with the attribute autofocus, Chromium reports an error where the address has a fragment
playground.start();
