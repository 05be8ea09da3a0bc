/* What all tabs share. Each tab's own script adds its functions to window.atonce. */
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});

  /** Text as HTML. */
  atonce.escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

  /** A short number: at most four digits that count. */
  atonce.number = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 0 }) : String(Number(value.toPrecision(4))));

  /** Say something to screen readers without moving the focus. */
  atonce.say = (text) => {
    let place = document.getElementById("at-says");
    if (!place) {
      place = document.createElement("div");
      place.id = "at-says";
      place.className = "at-hidden";
      place.setAttribute("role", "status");
      document.body.append(place);
    }
    place.textContent = text;
  };

  /** The open tab stands in the address, so that a reload and a bookmark come back to it. */
  atonce.atTab = (key) => history.replaceState(null, "", `#${key}`);
  const wished = location.hash.slice(1); // before the first tab, which opens by itself, has put itself there
  atonce.tabOf = (keys) => [keys.includes(wished) ? { selected: wished, __type__: "update" } : { __type__: "update" }];

  const prepare = () => {
    const form = document.querySelector(".at-logout");
    if (form && window.atonceSignedIn) form.hidden = false;
  };
  new MutationObserver((_, watcher) => {
    if (document.querySelector(".at-head")) {
      prepare();
      watcher.disconnect();
    }
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
