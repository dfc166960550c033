"use strict";
// The table of results: a search that filters as you type, columns that sort, and both in the address, so that a link
// keeps them. Without this script the whole table is shown.
const body = document.querySelector("#results tbody");
if (body) {
  const box = document.querySelector(".search");
  const field = box.querySelector("input");
  const told = box.querySelector("output");
  const heads = [...document.querySelectorAll("#results th")];
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const collator = new Intl.Collator("en", { numeric: true });
  const count = (number) => number.toLocaleString("en");
  const all = `${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}`;
  let sorted = -1;
  let down = false;

  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every((word) => texts[place].includes(word));
      shown += !row.hidden;
    });
    told.textContent = words.length ? `${count(shown)} of ${all}` : all;
  };

  const held = (row) => {
    const cell = row.cells[sorted];
    return "v" in cell.dataset ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent;
  };

  const compare = (left, right) => {
    if (left === null || right === null) return (left === null) - (right === null); // what is not known stands last
    const order = typeof left === "number" ? left - right : collator.compare(left, right);
    return down ? -order : order;
  };

  const sort = () => {
    heads.forEach((head, place) => {
      if (place === sorted) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const order = rows.map((row, place) => ({ row, place, value: sorted < 0 ? place : held(row) }));
    if (sorted >= 0) order.sort((left, right) => compare(left.value, right.value) || left.place - right.place);
    body.append(...order.map((entry) => entry.row));
  };

  const keep = () => {
    const state = new URLSearchParams();
    if (field.value) state.set("q", field.value);
    if (sorted >= 0) state.set("sort", `${down ? "-" : ""}${sorted + 1}`);
    const hash = state.toString();
    try {
      history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
    } catch {
      location.hash = hash; // a page that was not opened from a place of its own
    }
  };

  const restore = () => {
    const state = new URLSearchParams(location.hash.slice(1));
    field.value = state.get("q") ?? "";
    const column = Number(state.get("sort"));
    down = column < 0;
    sorted = Number.isInteger(column) && heads[Math.abs(column) - 1] ? Math.abs(column) - 1 : -1;
    sort();
    filter();
  };

  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.title = "sort";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      [sorted, down] = sorted !== place ? [place, false] : down ? [-1, false] : [place, true];
      sort();
      keep();
    });
  });
  field.addEventListener("input", () => {
    filter();
    keep();
  });
  addEventListener("hashchange", restore);
  box.hidden = false;
  restore();
}
