// The Evidence and Train tabs: choices that the arrow keys go through, and saving a page that is shown in a frame.
(() => {
  "use strict";

  // Gradio gives each radio button a name of its own, so that each is a group by itself; with one name they are one group.
  document.addEventListener("focusin", (event) => {
    const group = event.target instanceof Element ? event.target.closest("#evidence-section, #train-small") : null;
    if (!group) return;
    for (const radio of group.querySelectorAll("input[type=radio]")) radio.name = group.id;
  });

  document.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest(".ev-save") : null;
    if (!button) return;
    const frame = button.closest("p").parentElement.querySelector("iframe.ev-page");
    if (!frame) return;
    const address = URL.createObjectURL(new Blob([frame.getAttribute("srcdoc")], { type: "text/html" }));
    const link = document.createElement("a");
    link.href = address;
    link.download = button.dataset.name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
})();
