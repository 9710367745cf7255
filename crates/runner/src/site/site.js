
(() => {
  // Tables: a head sorts the rows of each run by its column; what has no value stays below.
  const sort = (button) => {
    const head = button.closest("th");
    const table = head.closest("table");
    const column = [...head.parentElement.children].indexOf(head);
    const was = head.getAttribute("aria-sort");
    const first = table.querySelector("tbody tr:not(.group)").children[column];
    const descends = was ? was === "ascending" : head.querySelector('[title="higher is better"]') !== null;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descends ? "descending" : "ascending");
    const isText = first.matches("th");
    const compare = (a, b) => {
      const [x, y] = [a.children[column].dataset.value, b.children[column].dataset.value];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return (isText ? x.localeCompare(y, "en") : x - y) * (descends ? -1 : 1);
    };
    for (const body of table.tBodies) body.append(...[...body.rows].filter((row) => !row.classList.contains("group")).sort(compare));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-sort]");
    if (button) sort(button);
  });

  // Choices hide tables, columns and rows.
  const filters = document.getElementById("filters");
  const filter = () => {
    const chosen = Object.fromEntries(new FormData(filters));
    const part = chosen.method.trim().toLowerCase();
    let any = false;
    for (const board of document.querySelectorAll(".board")) {
      const fits = (key) => !chosen[key] || board.dataset[key] === chosen[key];
      const has = !chosen.metric || board.querySelector(`[data-metric="${chosen.metric}"]`) !== null;
      let rows = 0;
      for (const row of board.querySelectorAll("tr[data-method]")) {
        row.hidden = part !== "" && !row.dataset.method.toLowerCase().includes(part);
        rows += !row.hidden;
      }
      for (const body of board.querySelectorAll("tbody")) body.hidden = body.querySelector("tr[data-method]:not([hidden])") === null;
      for (const cell of board.querySelectorAll("[data-metric]")) cell.hidden = chosen.metric !== "" && cell.dataset.metric !== chosen.metric;
      board.hidden = !(fits("protocol") && fits("model") && fits("scale") && has && rows > 0);
      any ||= !board.hidden;
    }
    document.getElementById("none").hidden = any;
  };
  if (filters) {
    filters.addEventListener("input", filter);
    filters.addEventListener("submit", (event) => event.preventDefault());
    filter();
  }

  // Two images upon each other.
  const form = document.getElementById("compare");
  if (!form) return;
  const entries = JSON.parse(document.getElementById("pairs").textContent);
  const stage = document.getElementById("stage");
  const [pair, share, caption] = [stage.querySelector(".pair"), stage.querySelector("input"), stage.querySelector("figcaption")];
  const [left, right, border] = [pair.querySelector(".a"), pair.querySelector(".b"), pair.querySelector(".border")];
  const flicker = stage.querySelector("[data-flicker]");
  const { entry, a, b, column } = form.elements;

  const options = (select, texts) => {
    select.replaceChildren(...texts.map((text, i) => new Option(text, i)));
  };
  const shareOut = (percent) => {
    right.style.clipPath = `inset(0 0 0 ${percent}%)`;
    border.style.left = `${percent}%`;
    border.hidden = percent <= 0 || percent >= 100;
  };
  // Videos begin anew once both are there, so that they run side by side: a source that is set again restarts its animation.
  const together = async () => {
    const sources = [left.src, right.src];
    await Promise.allSettled([left.decode(), right.decode()]);
    if (left.src === sources[0] && right.src === sources[1]) [left.src, right.src] = sources;
  };
  const show = () => {
    const { columns, rows } = entries[entry.value];
    const { prompt, seed } = columns[column.value];
    for (const [image, choice] of [[left, a], [right, b]]) {
      const row = rows[choice.value];
      image.src = row.tiles[column.value];
      image.width = row.width;
      image.height = row.height;
      image.alt = `${row.label}: ${prompt}${row.seeded ? `, seed ${seed}` : ""}`;
    }
    caption.replaceChildren(...[`← ${rows[a.value].label}`, `${rows[b.value].label} →`, `${prompt}, seed ${seed}`].map((text) => {
      const line = document.createElement("span");
      line.textContent = text;
      return line;
    }));
    together();
    history.replaceState(null, "", `#${[entry, a, b, column].map((choice) => choice.value).join("-")}`);
  };
  const fill = () => {
    const { columns, rows } = entries[entry.value];
    options(a, rows.map((row) => row.label));
    options(b, rows.map((row) => row.label));
    options(column, columns.map(({ prompt }) => prompt));
    [a.value, b.value] = [rows.length > 2 ? 1 : 0, rows.length - 1];
  };
  const fromAddress = () => {
    const wanted = location.hash.slice(1).split("-").map(Number);
    if (wanted.length !== 4 || !entries[wanted[0]]) return show();
    entry.value = wanted[0];
    fill();
    for (const [choice, value] of [[a, wanted[1]], [b, wanted[2]], [column, wanted[3]]]) {
      if (choice.options[value]) choice.value = value;
    }
    show();
  };

  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    flicker.setAttribute("aria-pressed", "false");
    shareOut(share.valueAsNumber);
  };
  flicker.addEventListener("click", () => {
    if (timer) return stop();
    flicker.setAttribute("aria-pressed", "true");
    let isRight = true;
    // Half a second each: slow enough for everybody.
    const turn = () => shareOut((isRight = !isRight) ? 0 : 100);
    timer = setInterval(turn, 500);
    turn();
  });
  share.addEventListener("input", stop);
  const drag = (event) => {
    const box = pair.getBoundingClientRect();
    share.value = (100 * (event.clientX - box.left)) / box.width;
    stop();
  };
  pair.addEventListener("pointerdown", (event) => {
    pair.setPointerCapture(event.pointerId);
    drag(event);
  });
  pair.addEventListener("pointermove", (event) => {
    if (pair.hasPointerCapture(event.pointerId)) drag(event);
  });
  form.addEventListener("input", (event) => {
    if (event.target === entry) fill();
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of stage.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => {
      const n = column.options.length;
      column.value = (Number(column.value) + Number(button.dataset.step) + n) % n;
      show();
    });
  }
  stage.querySelector("[data-swap]").addEventListener("click", () => {
    [a.value, b.value] = [b.value, a.value];
    show();
  });
  addEventListener("hashchange", fromAddress);
  share.value = 50;
  stop();
  fromAddress();
})();
