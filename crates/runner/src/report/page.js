"use strict";
(() => {
  // A sample, enlarged: up and down through the methods under one prompt and seed, left and right through the prompts.
  const box = document.getElementById("lightbox");
  const [caption, bar] = [box.querySelector("p"), box.querySelector("div")];
  const picture = document.createElement("img");
  box.prepend(picture);
  let rows = [];
  let [row, column] = [0, 0];
  const at = (r, c) => rows[r] && rows[r][c];

  const show = (r, c) => {
    const tile = at(r, c);
    if (!tile) return;
    [row, column] = [r, c];
    const image = tile.querySelector("img");
    picture.src = image.src;
    picture.alt = image.alt;
    caption.replaceChildren();
    const name = document.createElement("bdi");
    name.textContent = tile.closest("tr").querySelector("th").textContent;
    const prompt = document.createElement("span");
    prompt.textContent = " · " + tile.dataset.about;
    caption.append(name, prompt);
    for (const button of bar.querySelectorAll("[data-down]")) {
      button.disabled = !at(row + Number(button.dataset.down), column + Number(button.dataset.right));
    }
  };
  const move = (down, right) => show(row + down, column + right);

  document.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) {
      rows = [...tile.closest("tbody").rows].map((tr) => [...tr.querySelectorAll(".tile")]);
      const r = rows.findIndex((tiles) => tiles.includes(tile));
      show(r, rows[r].indexOf(tile));
      box.showModal();
    } else if (event.target === box || event.target.closest("[data-close]")) {
      box.close();
    } else {
      const button = event.target.closest("[data-down]");
      if (button) move(Number(button.dataset.down), Number(button.dataset.right));
    }
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(...step);
  });
  box.addEventListener("close", () => at(row, column).focus());

  // What is folded away is printed all the same.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
})();
