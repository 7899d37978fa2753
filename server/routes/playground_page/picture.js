// The image panel: a sample, a file of the visitor, or an address that the server loads.

import {$, make, show} from "./dom.js";
import {describeObjects} from "./truth.js";

const ACCEPTED = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const UNREADABLE = "The browser cannot read this file as an image.";

const toDataUrl = (blob) => new Promise((done, failed) => {
  const reader = Object.assign(new FileReader(), {onload: () => done(reader.result), onerror: failed});
  reader.readAsDataURL(blob);
});
// A file is decoded, because its name and type do not reveal whether it is an image.
const toAcceptedType = async (blob) => {
  const bitmap = await createImageBitmap(blob);
  if (ACCEPTED.includes(blob.type)) return blob;
  const canvas = make("canvas", {width: bitmap.width, height: bitmap.height});
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
};

export class PicturePanel {
  constructor(api, onChange) {
    Object.assign(this, {api, onChange, current: null, choices: 0, shown: Promise.resolve(), samples: []});
    $("file").addEventListener("change", () => {
      if ($("file").files[0]) this.chooseFile($("file").files[0]);
      $("file").value = "";  // so that the same file can be chosen again
    });
    document.addEventListener("paste", (event) => event.clipboardData.files[0] && this.chooseFile(event.clipboardData.files[0]));
    for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
      document.addEventListener(name, (event) => {
        event.preventDefault();
        $("drop").classList.toggle("over", over);
        const file = name === "drop" && event.dataTransfer.files[0];
        if (file) this.chooseFile(file);
      });
    $("use-address").addEventListener("click", () => this.chooseAddress($("address").value.trim()));
    $("address").addEventListener("keydown", (event) => event.key === "Enter" && this.chooseAddress($("address").value.trim()));
  }
  showSamples(samples) {
    this.samples = samples;
    $("samples").replaceChildren(...this.samples.map((sample) => {
      const label = sample.name.replace(/\.\w+$/, "");
      const button = make("button", {type: "button", title: label, ariaPressed: "false"}, make("img", {src: `/samples/${sample.name}`, alt: label}));
      button.dataset.name = sample.name;
      button.addEventListener("click", () => this.chooseSample(sample.name));
      return button;
    }));
  }
  fail(message) { show($("image-problem"), message); }
  chooseFile(file) {
    const name = file.name || "pasted image";
    return this.choose(toAcceptedType(file).then(toDataUrl), {kind: "upload", name, objects: null}, UNREADABLE);
  }
  // A link, or the first visit, chooses without focus, which would open the keyboard of a phone.
  chooseSample(name, focus = true) {
    const sample = this.samples.find((each) => each.name === name);
    if (!sample) return this.fail("This server does not have the sample image of the link.");
    const url = this.api.call(`/samples/${encodeURIComponent(name)}`).then((response) => response.blob()).then(toDataUrl);
    return this.choose(url, {kind: "sample", name, objects: sample.objects}, null, focus);
  }
  chooseAddress(url, focus = true) {
    let address = null;
    try {
      address = new URL(url);
    } catch { /* the message below */ }
    if (!["http:", "https:"].includes(address?.protocol)) return this.fail("The address must begin with https:// or http://.");
    $("address").value = address.href;
    return this.choose(Promise.resolve(address.href), {kind: "url", name: address.href, objects: null}, null, focus);
  }
  // The image that was chosen last is shown, and a run waits for it.
  choose(url, picture, problem, focus = true) {
    this.shown = this.load(url, picture, problem, focus, ++this.choices);
    return this.shown;
  }
  async load(loading, picture, problem, focus, choice) {
    try {
      const url = await loading;
      if (choice !== this.choices) return;
      this.current = {...picture, url, id: picture.kind === "upload" ? choice : picture.name};
    } catch (error) {
      if (choice === this.choices) this.fail(`${problem ?? error.message}${this.current ? " The image before it stays chosen." : ""}`);
      return;
    }
    this.render();
    if (focus) $("question").focus();
    this.onChange();
  }
  clear(message) {
    this.choices += 1;  // an image that still loads is not shown
    this.current = null;
    this.shown = Promise.resolve();
    this.render();
    this.fail(message);
    this.onChange();
  }
  render() {
    const picture = this.current, isShown = picture !== null && picture.kind !== "url";
    this.fail(null);
    $("image").hidden = !isShown;
    if (isShown) $("image").src = picture.url;
    $("hint").hidden = isShown;
    if (!isShown) $("hint").textContent = picture ? `The server loads ${picture.url}` : "Drop an image here, paste one, or press to choose";
    show($("truth"), picture?.objects ? describeObjects(picture.objects) : null);
    for (const button of $("samples").children)
      button.ariaPressed = String(picture?.kind === "sample" && button.dataset.name === picture.name);
  }
}
