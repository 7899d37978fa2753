// One question with the answer of one strategy. Late events of a request reach its own turn only.

import {$, make, openDialog, show} from "./dom.js";
import {THRESHOLD} from "./figures.js";
import {describeVerdict, judge} from "./truth.js";

const describeClaim = ({question, probability}) => `${question} Yes: ${(100 * probability).toFixed(0)} %`;
const scoreClaim = (p) => p >= THRESHOLD ? (p - THRESHOLD) / (1 - THRESHOLD) : (p - THRESHOLD) / THRESHOLD;

export class Turn {
  // objects: those of a sample image; null where they are unknown
  constructor({request, question, label, key, colours, truth, objects}) {
    Object.assign(this, {request, question, key, colours, truth, objects});
    Object.assign(this, {words: [], text: "", length: 0, claims: [], isAnswered: false});
    this.node = make("section", {className: "turn"}, $("turn").content.cloneNode(true));
    this.find = (selector) => this.node.querySelector(selector);
    this.answer = this.find(".answer");
    this.find(".label").textContent = label;
    this.find(".asked").textContent = question;
  }
  get messages() {
    return [...this.request.messages, {role: "assistant", content: this.text}];
  }
  markOutdated(isOutdated) {
    this.node.classList.toggle("stale", isOutdated);
    this.find(".outdated").hidden = !isOutdated;
  }
  // Returns the error, or null.
  async run(api, signal) {
    const start = performance.now();
    let first = null, failure = null;
    this.answer.classList.add("busy");
    this.answer.ariaBusy = "true";
    try {
      for await (const chunk of api.stream("/v1/chat/completions", this.request, signal)) {
        const choice = chunk.choices[0];
        if (choice?.logprobs || choice?.delta.content) first ??= performance.now() - start;
        if (choice) this.addText(choice.delta.content ?? "", choice.logprobs?.content ?? []);
        const {claims, strategy} = chunk.onlyseen ?? {};
        if (claims) this.showClaims(strategy ? claims : [...this.claims, ...claims]);  // the receipt repeats all
        if (strategy) this.showReceipt(chunk.onlyseen, first, performance.now() - start);
      }
      this.isAnswered = this.text !== "";
      if (!this.text) this.fail("The answer is empty.", "");
    } catch (error) {
      failure = error;
      if (error.name === "AbortError") this.fail("Stopped.", "");
      else this.fail(error.param ? `${error.param}: ${error.message}` : error.message, "failed");
    }
    this.judge();
    this.answer.classList.remove("busy");
    this.answer.ariaBusy = "false";
    return failure;
  }
  fail(message, className) {
    this.answer.append(make("p", {className, role: "alert", textContent: message}));
  }
  addText(text, entries) {
    for (const piece of text.split(/(?=\s)/)) {
      const space = /^\s/.test(piece) ? piece[0] : "";
      if (!this.words.length || space) {
        const node = make("span", {className: "word"});
        this.answer.append(space, node);
        this.words.push({node, start: this.length + space.length, scores: []});
      }
      const word = this.words.at(-1);
      word.node.append(piece.slice(space.length));
      word.end = this.length += [...piece].length;  // the offsets of claims count code points
    }
    this.text += text;
    const word = this.words.at(-1);
    for (const {grounding, changed} of entries) {
      if (changed) word.node.classList.add("changed");
      if (grounding != null) word.scores.push(grounding);
    }
    if (word.scores.length) {
      const score = word.scores.reduce((sum, value) => sum + value, 0);  // a word's log-ratio is the sum of its tokens'
      this.colour(word.node, score / 4, "grounding", score.toFixed(3), `grounding ${score.toFixed(2)}`);
    }
    this.showCheck(word);
    if (/[.!?]/.test(text)) this.judge();
  }
  colour(node, score, kind, value, title) {
    const strength = Math.min(Math.abs(score), 1) * .55;
    node.style.backgroundColor = `rgba(var(--${score > 0 ? "positive" : "negative"}), ${strength.toFixed(2)})`;
    node.dataset[kind] = value;
    node.title = `${title}${node.classList.contains("changed") ? ", changed" : ""}`;
  }
  showCheck(word) {
    if (this.colours !== "check") return;
    const claim = this.claims.find(({start, end}) => start !== null && start < word.end && end > word.start);
    if (claim) this.colour(word.node, scoreClaim(claim.probability), "probability", claim.probability.toFixed(3), describeClaim(claim));
  }
  showClaims(claims) {
    this.claims = claims;
    this.words.forEach((word) => this.showCheck(word));
    const removed = claims.filter(({start}) => start === null);
    this.find(".removed").hidden = !removed.length;
    this.find(".removed summary").textContent = `Replaced or dropped: ${removed.length}`;
    this.find(".removed ul").replaceChildren(...removed.map((claim) =>
      make("li", {}, make("s", {textContent: claim.text, title: claim.question}), ` ${claim.action}. ${describeClaim(claim)}`)));
  }
  // Mark words that name an object which is not in the sample image.
  judge() {
    const mentions = this.objects ? this.truth.find(this.text) : [];
    const invented = mentions.filter(({name}) => !Object.hasOwn(this.objects, name));
    for (const {node, start, end} of this.words)
      node.classList.toggle("invented", invented.some((mention) => mention.start < end && mention.end > start));
    show(this.find(".verdict"), mentions.length ? describeVerdict(judge(mentions, this.objects)) : null);
  }
  showReceipt(receipt, first, total) {
    const {pictures = {}, ...rest} = receipt;
    const rows = [
      ["branches", receipt.branches.join(", ") || "none"],
      ["steps", receipt.steps],
      ["forward passes", receipt.forward_passes],
      ["changed steps", receipt.changed_steps ?? "unknown"],
      ["first token", first === null ? "none" : `${Math.round(first)} ms`],
      ["total", `${Math.round(total)} ms`],
    ];
    this.find("dl").replaceChildren(...rows.flatMap(([name, value]) =>
      [make("dt", {textContent: name}), make("dd", {textContent: value})]));
    this.find(".receipt pre").textContent = JSON.stringify(rest, null, 1);
    this.find(".receipt").hidden = false;
    this.find(".pictures").replaceChildren(...Object.entries(pictures).flatMap(([name, urls]) => urls.map((url) => createPicture(name, url))));
  }
}

const createPicture = (name, url) => {
  const title = name === "main" ? "image that is answered on" : name.endsWith("/relevance map") ? name : `image of ${name}`;
  const button = make("button", {type: "button"}, make("img", {src: url, alt: ""}), title);
  button.addEventListener("click", () => openDialog(title, {image: url}));
  return button;
};
