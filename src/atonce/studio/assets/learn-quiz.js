// The quiz of the Learn tab: marked here, kept in this browser, sent nowhere.
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const STORE = "atonce-learn-quiz";
  atonce.learn = atonce.learn || {};

  atonce.learn.quiz = (root) => {
    const form = root.querySelector("#learn-quiz"), score = root.querySelector("#learn-score");
    const questions = [...form.querySelectorAll("fieldset")];
    let chosen = {};
    try {
      chosen = JSON.parse(localStorage.getItem(STORE)) || {};
    } catch (_) { /* nothing kept */ }

    function show() {
      let right = 0, answered = 0;
      questions.forEach((question, number) => {
        const place = question.querySelector(".learn-why"), choice = chosen[number];
        question.querySelectorAll("input").forEach((input) => { input.checked = input.value === choice; });
        if (choice === undefined) {
          place.textContent = "";
          place.className = "learn-why";
          return;
        }
        answered += 1;
        const good = choice === question.dataset.right;
        if (good) right += 1;
        const name = question.querySelector(`input[value="${question.dataset.right}"]`).parentElement.textContent;
        place.textContent = `${good ? "Right." : `Not quite: ${name}.`} ${place.dataset.why}`;
        place.className = `learn-why learn-${good ? "good" : "bad"}`;
      });
      const all = questions.length;
      score.textContent = answered === 0 ? "" : `${right} of ${answered} right${answered < all ? `, ${all - answered} to go` : ", all answered"}.`;
    }

    form.addEventListener("change", (event) => {
      const number = questions.indexOf(event.target.closest("fieldset"));
      chosen[number] = event.target.value;
      try { localStorage.setItem(STORE, JSON.stringify(chosen)); } catch (_) { /* a full or closed store */ }
      show();
      const said = questions[number].querySelector(".learn-why").textContent;
      if (atonce.say) atonce.say(said);
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    root.querySelector("#learn-again").addEventListener("click", () => {
      chosen = {};
      try { localStorage.removeItem(STORE); } catch (_) { /* closed store */ }
      show();
    });
    show();
  };
})();
