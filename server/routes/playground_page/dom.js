// Helpers for elements. All text is set as text, never as HTML.

export const $ = (id) => document.getElementById(id);

export const make = (tag, fields = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
};

// Show a message, or hide its element if there is none.
export const show = (node, message) => {
  node.textContent = message ?? "";
  node.hidden = !message;
};

export const openDialog = (title, {note = "", text = null, image = null}) => {
  $("dialog-title").textContent = title;
  $("dialog-note").textContent = note;
  $("dialog-text").hidden = text === null;
  $("dialog-text").value = text ?? "";
  $("dialog-image").hidden = image === null;
  if (image !== null) Object.assign($("dialog-image"), {src: image, alt: title});
  $("dialog").showModal();
  if (text !== null) $("dialog-text").select();
};

// Copy a text. It is shown too, because a browser has no clipboard on an address without TLS.
export const copyText = async (title, text) => {
  openDialog(title, {text});
  try {
    await navigator.clipboard.writeText(text);
    $("dialog-note").textContent = "Copied.";
  } catch {
    $("dialog-note").textContent = "The browser does not permit copying. The text is selected: press Ctrl+C.";
  }
};
