"use strict";
// Draws the charts and moves the film. All numbers are in the page, as JSON.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const DASHES = ["", "7 3", "2 2", "7 3 2 3", "11 3"];
  const HEIGHT = 250;
  const ROOM = { left: 54, right: 14, top: 10, bottom: 38 };

  const make = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  };
  const add = (name, parent, text = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  };

  // Numbers for people: 1,234 0.0123 1.2e-5
  const show = (value) => {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e7) return value.toExponential(2);
    const digits = Number.isInteger(value) ? 0 : Math.max(0, 3 - Math.floor(Math.log10(size)));
    return value.toLocaleString("en-US", { maximumFractionDigits: digits });
  };
  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const tick = (value) => {
    const size = Math.abs(value);
    if (value === 0 || (size >= 0.01 && size < 1e5)) return show(value);
    const power = Math.round(Math.log10(size));
    if (Math.abs(size / 10 ** power - 1) > 1e-9) return value.toExponential().replace("+", "");
    const digits = [...String(Math.abs(power))].map((d) => SUPERSCRIPTS[d]).join("");
    return `10${power < 0 ? "⁻" : ""}${digits}`;
  };

  // Ticks and place (0 to 1) of an axis that holds the values; widened to round ends, or to 0.
  const axis = (values, log, widen) => {
    const known = values.filter((v) => v !== null && (!log || v > 0));
    let low = Math.min(...known), high = Math.max(...known);
    if (!known.length) [low, high] = [1, 2];
    if (log) {
      if (high / low < 1.2) [low, high] = [low / 2, high * 2];
      const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
      const every = Math.max(1, Math.round((last - first) / 6));
      const steps = high / low < 90 ? [1, 2, 5] : [1];
      if (widen && steps.length > 1) {
        const round = (v, up) => {
          const power = 10 ** Math.floor(Math.log10(v));
          const all = [1, 2, 5, 10].map((s) => s * power);
          return up ? all.find((s) => s >= v * 0.999) : all.findLast((s) => s <= v * 1.001);
        };
        [low, high] = [round(low, false), round(high, true)];
      }
      const ticks = [];
      for (let power = first; power <= last; power += every) {
        for (const step of steps) ticks.push(Number(`${step}e${power}`));
      }
      const place = (v) => Math.log(v / low) / Math.log(high / low);
      return { ticks: ticks.filter((v) => v >= low * 0.999 && v <= high * 1.001), place };
    }
    if (widen && low >= 0) low = 0;
    if (high === low) [low, high] = [low - 0.5, high + 0.5];
    const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((s) => s * power >= rough) * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
      ticks.push(Number((i * step).toPrecision(12)));
    }
    return { ticks, place: (v) => (v - low) / (high - low) };
  };

  const stroke = (series, number) => (series.style === "bold" ? "var(--bold)" : `var(--c${number % 5})`);
  const look = (series, number) => ({
    stroke: stroke(series, number),
    class: series.style,
    "stroke-dasharray": series.style === "bold" ? "" : DASHES[number % 5],
  });

  const chart = (figure, spec) => {
    const width = Math.max(260, Math.round(figure.clientWidth));
    for (const old of figure.querySelectorAll("svg, .legend, .at")) old.remove();
    const inner = { width: width - ROOM.left - ROOM.right, height: HEIGHT - ROOM.top - ROOM.bottom };
    const moments = [...new Set(spec.series.flatMap((s) => s.x))].sort((a, b) => a - b);
    const xAxis = axis(moments, spec.log.includes("x"), false);
    const yAxis = axis(spec.series.flatMap((s) => s.y), spec.log.includes("y"), true);
    const x = (v) => ROOM.left + xAxis.place(v) * inner.width;
    const y = (v) => ROOM.top + (1 - yAxis.place(v)) * inner.height;
    const drawable = (v) => v !== null && (!spec.log.includes("y") || v > 0);

    const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, tabindex: 0, role: "slider" });
    for (const v of yAxis.ticks) {
      make("line", { class: "grid", x1: ROOM.left, x2: width - ROOM.right, y1: y(v), y2: y(v) }, svg);
      make("text", { x: ROOM.left - 7, y: y(v) + 4, "text-anchor": "end" }, svg).textContent = tick(v);
    }
    for (const v of xAxis.ticks) {
      make("line", { class: "grid", x1: x(v), x2: x(v), y1: HEIGHT - ROOM.bottom, y2: HEIGHT - ROOM.bottom + 4 }, svg);
      const anchor = x(v) > width - 2 * ROOM.right ? "end" : "middle";
      make("text", { x: x(v), y: HEIGHT - ROOM.bottom + 17, "text-anchor": anchor }, svg).textContent = tick(v);
    }
    const floor = HEIGHT - ROOM.bottom;
    make("line", { class: "grid", x1: ROOM.left, x2: width - ROOM.right, y1: floor, y2: floor }, svg);
    const middle = ROOM.left + inner.width / 2;
    make("text", { x: middle, y: HEIGHT - 5, "text-anchor": "middle" }, svg).textContent = spec.x;

    // The bold line lies on top.
    const colours = new Map();
    for (const series of spec.series) {
      if (series.style !== "bold") colours.set(series, colours.size);
    }
    for (const series of [...spec.series].reverse()) {
      const points = series.x.map((v, i) => (drawable(series.y[i]) ? [x(v), y(series.y[i])] : null));
      if (series.style === "dots" || points.filter(Boolean).length === 1) {
        for (const point of points.filter(Boolean)) {
          make("circle", { cx: point[0], cy: point[1], r: 4.5, fill: stroke(series, colours.get(series)) }, svg);
        }
        continue;
      }
      const d = points.map((p, i) => p && `${i && points[i - 1] ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`);
      make("path", { d: d.filter(Boolean).join(""), ...look(series, colours.get(series)) }, svg);
    }

    const cross = make("line", { class: "cross", y1: ROOM.top, y2: HEIGHT - ROOM.bottom, visibility: "hidden" }, svg);
    const dots = spec.series.map((s) => make("circle", { r: 3.5, fill: stroke(s, colours.get(s)), visibility: "hidden" }, svg));
    const legend = document.createElement("ul");
    legend.className = "legend";
    const values = spec.series.map((series) => {
      const item = add("li", legend);
      const swatch = make("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, item);
      if (series.style === "dots") make("circle", { cx: 11, cy: 5, r: 4.5, fill: stroke(series, colours.get(series)) }, swatch);
      else make("path", { d: "M0 5H22", ...look(series, colours.get(series)) }, swatch);
      add("span", item, series.name);
      return add("b", item);
    });
    const at = document.createElement("div");
    at.className = "at";
    figure.append(at, legend, svg);

    const lookup = spec.series.map((s) => new Map(s.x.map((v, i) => [v, s.y[i]])));
    let current = moments.length - 1;
    // What a series says at a moment; of one measured now and then, the last before.
    const read = (index, visible) => {
      current = Math.max(0, Math.min(moments.length - 1, index));
      const moment = moments[current];
      const found = lookup.map((map) => map.get(moment) ?? null);
      at.textContent = `at ${spec.x} ${show(moment)}`;
      values.forEach((value, i) => { value.textContent = show(found[i]); });
      cross.setAttribute("x1", x(moment));
      cross.setAttribute("x2", x(moment));
      cross.setAttribute("visibility", visible ? "visible" : "hidden");
      dots.forEach((dot, i) => {
        const there = visible && drawable(found[i]);
        dot.setAttribute("visibility", there ? "visible" : "hidden");
        if (there) {
          dot.setAttribute("cx", x(moment));
          dot.setAttribute("cy", y(found[i]));
        }
      });
      const told = spec.series.map((s, i) => `${s.name} ${show(found[i])}`).join("; ");
      svg.setAttribute("aria-valuenow", current);
      svg.setAttribute("aria-valuetext", `${spec.x} ${show(moment)}: ${told}`);
    };
    svg.setAttribute("aria-label", `${spec.title} against ${spec.x}; arrow keys read values`);
    svg.setAttribute("aria-valuemin", 0);
    svg.setAttribute("aria-valuemax", moments.length - 1);
    const nearest = (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * width;
      let best = 0;
      moments.forEach((v, i) => {
        if (Math.abs(x(v) - place) < Math.abs(x(moments[best]) - place)) best = i;
      });
      read(best, true);
    };
    svg.addEventListener("pointermove", nearest);
    svg.addEventListener("pointerdown", nearest);
    svg.addEventListener("pointerleave", () => read(moments.length - 1, false));
    svg.addEventListener("focus", () => read(current, true));
    svg.addEventListener("blur", () => read(moments.length - 1, false));
    svg.addEventListener("keydown", (event) => {
      const large = Math.max(1, Math.round(moments.length / 10));
      const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -large, PageUp: large, Home: -moments.length, End: moments.length };
      if (!(event.key in moves)) return;
      event.preventDefault();
      read(current + moves[event.key], true);
    });
    read(current, false);
  };

  for (const figure of document.querySelectorAll("[data-chart]")) {
    const spec = data.charts[figure.dataset.chart];
    let drawn = 0;
    // Words keep their size when the window does not.
    new ResizeObserver(() => {
      if (figure.clientWidth === drawn) return;
      drawn = figure.clientWidth;
      chart(figure, spec);
    }).observe(figure);
  }

  const film = document.getElementById("film");
  if (film) {
    const slider = document.getElementById("moment");
    const time = document.getElementById("time");
    const play = document.getElementById("play");
    let clock = null;
    const move = () => {
      const words = `t = ${data.times[slider.value].toLocaleString("en-US")}`;
      film.style.setProperty("--frame", slider.value);
      slider.setAttribute("aria-valuetext", words);
      time.textContent = words;
    };
    const stop = () => {
      clearInterval(clock);
      clock = null;
      play.textContent = "Play";
      play.setAttribute("aria-pressed", "false");
    };
    slider.addEventListener("input", () => { stop(); move(); });
    slider.addEventListener("change", move);
    play.addEventListener("click", () => {
      if (clock) return stop();
      if (slider.value === slider.max) slider.value = 0;
      move();
      play.textContent = "Pause";
      play.setAttribute("aria-pressed", "true");
      clock = setInterval(() => {
        slider.stepUp();
        move();
        if (slider.value === slider.max) stop();
      }, 110);
    });
    move();
  }

  // A link to what is folded away opens it.
  const unfold = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", unfold);
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.settings)")) details.open = true;
  });
  unfold();
})();
