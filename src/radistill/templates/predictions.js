"use strict";
(() => {
  const find = document.getElementById("find");
  const [words, task, look, said] = ["words", "task", "look", "said"].map((id) => document.getElementById(id));
  const groups = [...document.querySelectorAll("main details")].map((box) => ({
    box,
    count: box.querySelector("summary b"),
    total: box.querySelector("summary b").textContent,
    items: [...box.querySelectorAll("article")],
  }));
  const texts = new Map();
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const all = groups.reduce((sum, group) => sum + group.items.length, 0);
  const plain = (number) => number.toLocaleString("en-GB");
  const apply = () => {
    const wanted = words.value.trim().toLowerCase();
    const isFiltered = wanted !== "" || look.value !== "";
    let shown = 0;
    for (const { box, count, total, items } of groups) {
      const isOfTask = task.value === "" || box.dataset.task === task.value;
      let here = 0;
      for (const item of items) {
        const isShown = isOfTask && (look.value === "" || item.classList.contains(look.value)) && (wanted === "" || textOf(item).includes(wanted));
        item.hidden = !isShown;
        here += isShown;
      }
      shown += here;
      box.hidden = here === 0;
      count.textContent = isFiltered ? `${plain(here)} of ${total}` : total;
    }
    if (wanted !== "" && shown <= 100) for (const { box } of groups) box.open ||= !box.hidden;
    said.textContent = `${plain(shown)} of ${plain(all)} items`;
  };
  let waiting = 0;
  words.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 150); });
  task.addEventListener("change", apply);
  look.addEventListener("change", apply);
  find.hidden = false;
  apply();
})();
