"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const at = (id) => document.getElementById(id);
const memory = "scalebench-study-" + study.study;
let choices = study.pairs.map(() => null), seconds = study.pairs.map(() => 0), now = 0, shown = 0;
try {
  const kept = JSON.parse(localStorage.getItem(memory));
  if (kept && kept.choices.length === choices.length) { choices = kept.choices; seconds = kept.seconds; now = choices.filter(Boolean).length; }
} catch { /* A browser that keeps nothing: the study is answered in one go. */ }

function csv() {
  const rows = choices.map((choice, i) => [study.study, i + 1, choice, seconds[i].toFixed(2)].join(","));
  return "study,pair,choice,seconds\n" + rows.join("\n") + "\n";
}

function show() {
  const over = now >= study.pairs.length;
  at("asking").hidden = over;
  at("done").hidden = !over;
  if (over) {
    at("csv").value = csv();
    at("save").href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv());
    at("save").focus();
    return;
  }
  const pair = study.pairs[now];
  at("prompt").textContent = "“" + pair.prompt + "”";
  at("left-image").src = pair.left;
  at("right-image").src = pair.right;
  at("left").setAttribute("aria-pressed", choices[now] === "left");
  at("right").setAttribute("aria-pressed", choices[now] === "right");
  at("progress").value = now / study.pairs.length;
  at("count").textContent = (now + 1) + " of " + study.pairs.length;
  at("back").disabled = now === 0;
  shown = performance.now();
}

function choose(side) {
  if (now >= study.pairs.length) return;
  choices[now] = side;
  seconds[now] = (performance.now() - shown) / 1000;
  now += 1;
  try { localStorage.setItem(memory, JSON.stringify({ choices, seconds })); } catch { /* as above */ }
  show();
}

function back() {
  now = Math.max(0, Math.min(now, study.pairs.length) - 1);
  show();
}

at("question").textContent = study.question;
at("left").addEventListener("click", () => choose("left"));
at("right").addEventListener("click", () => choose("right"));
at("back").addEventListener("click", back);
at("again").addEventListener("click", back);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || event.target.id === "csv") return;
  if (event.key === "ArrowLeft") choose("left");
  else if (event.key === "ArrowRight") choose("right");
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});
show();
